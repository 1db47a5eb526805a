//! Makes a failing sequence shorter by leaving out commands as long as it still fails.

use std::time::Instant;

use super::step::Step;

/// Tries ever smaller cuts, from halves down to single commands, until none can be left out any more or
/// `limit` is reached. `attempt` runs a sequence and gives, if it fails, after how many steps and how.
/// `None` when not even the whole sequence fails (again).
pub fn shrink<F>(
    steps: Vec<Step>,
    limit: Instant,
    mut attempt: impl FnMut(&[Step]) -> Option<(usize, F)>,
) -> Option<(Vec<Step>, F)> {
    let (after, mut failure) = attempt(&steps)?;
    let mut steps = steps;
    steps.truncate(after);
    let mut cut_len = steps.len().div_ceil(2);
    while cut_len > 0 {
        let mut start = 0;
        let mut shortened = false;
        while start < steps.len() && Instant::now() < limit {
            let end = (start + cut_len).min(steps.len());
            let mut shorter = steps[..start].to_vec();
            shorter.extend_from_slice(&steps[end..]);
            if let Some((after, found)) = attempt(&shorter) {
                failure = found;
                shorter.truncate(after);
                steps = shorter;
                shortened = true;
            } else {
                start = end;
            }
        }
        // Leaving one command out can make another one superfluous: single ones are tried again.
        if cut_len > 1 {
            cut_len /= 2;
        } else if !shortened || Instant::now() >= limit {
            break;
        }
    }
    Some((steps, failure))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::step::{Mode, Op, generate};
    use super::*;

    #[test]
    fn only_what_matters_is_left() {
        let steps = generate(7, 200, Mode::Timeless);
        let puts = |steps: &[Step]| steps.iter().filter(|s| matches!(s.op, Op::Put { .. })).count();
        assert!(puts(&steps) > 3);
        let limit = Instant::now() + Duration::from_secs(10);
        let (left, ()) =
            shrink(steps, limit, |steps| (puts(steps) >= 3).then_some((steps.len(), ()))).unwrap();
        assert_eq!((left.len(), puts(&left)), (3, 3));
    }
}
