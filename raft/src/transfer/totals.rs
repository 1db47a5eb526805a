//! What a transfer counts and hashes on both sides: its last frame says it, so that nothing is missing in between.

use super::END_LEN;

/// See the module.
#[derive(Default)]
pub(crate) struct Totals {
    pub(crate) entries: u64,
    pub(crate) entry_bytes: u64,
    pub(crate) image_bytes: u64,
    crc: crc32fast::Hasher,
}

impl Totals {
    /// Takes in the data of a frame with entries or with a piece of the image.
    pub(crate) fn hash(&mut self, data: &[u8]) {
        self.crc.update(data);
    }

    /// The data of the last frame.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(END_LEN);
        for number in [self.entries, self.entry_bytes, self.image_bytes] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.crc.clone().finalize().to_le_bytes());
        out
    }
}
