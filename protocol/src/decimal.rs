//! Decimal numbers, both ways. Every command and most replies carry one, so neither direction goes through
//! `std`'s formatting or parsing machinery.

use bytes::BytesMut;

/// Digits of `u64::MAX`.
const DIGITS_MAX: usize = 20;

/// The number that `bytes` begin with, and how many digits it has (leading zeros count). None when there is
/// no digit, or when the number is above `u64::MAX`.
pub(crate) fn take_decimal(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value: u64 = 0;
    let mut len = 0;
    while let Some(byte) = bytes.get(len) {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            break;
        }
        value = if len < DIGITS_MAX - 1 {
            value * 10 + u64::from(digit)
        } else {
            value.checked_mul(10)?.checked_add(u64::from(digit))?
        };
        len += 1;
    }
    (len > 0).then_some((value, len))
}

/// Appends a number.
pub(crate) fn put_decimal(out: &mut BytesMut, mut number: u64) {
    let mut digits = [0u8; DIGITS_MAX];
    let mut at = DIGITS_MAX;
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The edges: each power of ten, its neighbours, and the largest, which one digit more no longer fits.
    #[test]
    fn numbers_survive_both_ways() {
        let powers = (0..20).map(|exponent| 10u64.pow(exponent));
        let edges = powers.flat_map(|power| [power - 1, power, power + 1]).chain([u64::MAX - 1, u64::MAX]);
        for number in edges {
            let mut out = BytesMut::new();
            put_decimal(&mut out, number);
            assert_eq!(out, number.to_string());
            assert_eq!(take_decimal(&out), Some((number, out.len())));
            out.extend_from_slice(b"x1");
            assert_eq!(take_decimal(&out), Some((number, out.len() - 2)));
        }
    }

    #[test]
    fn only_digits_within_64_bits_are_a_number() {
        assert_eq!(take_decimal(b""), None);
        assert_eq!(take_decimal(b" 1"), None);
        assert_eq!(take_decimal(b"-1"), None);
        assert_eq!(take_decimal(b"+1"), None);
        assert_eq!(take_decimal(b"18446744073709551616"), None);
        assert_eq!(take_decimal(b"99999999999999999999"), None);
        assert_eq!(take_decimal(b"100000000000000000000"), None);
        assert_eq!(take_decimal(b"00000000000000000000000018446744073709551615"), Some((u64::MAX, 44)));
    }
}
