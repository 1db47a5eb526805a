//! Which segments are rewritten together: a function of what is counted in them.

use std::ops::Range;

/// A rewritten segment shorter than this part of a whole one is merged with its neighbours ...
const SMALL_PART: u64 = 8;
/// ... when there are so many of them.
const MERGE_MIN: usize = 8;
/// What a body takes in a rewritten segment besides its bytes, about: a record of its own, a list of one piece, padding,
/// and its place in the footer.
const BODY_COST: u64 = 64;

/// A segment that may be rewritten, as far as the decision depends on it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    /// The size of its file, in bytes.
    pub(super) file: u64,
    /// Bytes of live bodies.
    pub(super) live_bytes: u64,
    /// Live bodies.
    pub(super) live: u64,
    /// It was rewritten before, or came with a snapshot.
    pub(super) bodies: bool,
}

impl Candidate {
    /// How long it will be, about.
    fn rewritten(&self) -> u64 {
        self.live_bytes + self.live * BODY_COST
    }

    /// Less than half of it is live.
    fn is_sparse(&self) -> bool {
        self.rewritten() < self.file / 2
    }
}

/// Runs of neighbours, each to become one segment of at most `most` bytes. Rewriting a run with a sparse segment frees at
/// least about as much as it writes; small segments without any are merged when there are many.
pub(super) fn plan(segments: &[Candidate], most: u64) -> Vec<Range<usize>> {
    let mut runs = Vec::new();
    let mut run = Run::default();
    for (at, segment) in segments.iter().enumerate() {
        let small = segment.bodies && segment.file < most / SMALL_PART;
        let joins = segment.is_sparse() || small;
        if !joins || run.bytes + segment.rewritten() > most {
            runs.extend(run.close(at));
        }
        if joins {
            run.add(segment);
        }
    }
    runs.extend(run.close(segments.len()));
    runs
}

/// The run being gathered.
#[derive(Default)]
struct Run {
    len: usize,
    bytes: u64,
    sparse: bool,
}

impl Run {
    fn add(&mut self, segment: &Candidate) {
        self.len += 1;
        self.bytes += segment.rewritten();
        self.sparse |= segment.is_sparse();
    }

    /// Ends before place `end`; answers the run when it is worth the work.
    fn close(&mut self, end: usize) -> Option<Range<usize>> {
        let run = std::mem::take(self);
        (run.sparse || run.len >= MERGE_MIN).then(|| end - run.len..end)
    }
}

/// What rewriting the run frees, about, in bytes.
pub(super) fn gain(run: &[Candidate]) -> u64 {
    let files: u64 = run.iter().map(|segment| segment.file).sum();
    files.saturating_sub(run.iter().map(Candidate::rewritten).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: u64 = 1 << 20;

    /// A segment of the log of which so many percent are live, in bodies of 1,000 bytes.
    fn log(percent: u64) -> Candidate {
        let live_bytes = MOST * percent / 100;
        Candidate { file: MOST, live_bytes, live: live_bytes / 1000, bodies: false }
    }

    /// A rewritten segment of so many bytes, all of them live.
    fn rewritten(file: u64) -> Candidate {
        Candidate { file, live_bytes: file * 9 / 10, live: file / 2000, bodies: true }
    }

    fn runs(segments: &[Candidate]) -> Vec<(usize, usize)> {
        plan(segments, MOST).into_iter().map(|run| (run.start, run.end)).collect()
    }

    /// Sparse neighbours become one, a dense one between them is left alone and parts them.
    #[test]
    fn sparse_segments() {
        assert_eq!(runs(&[log(80), log(1), log(2), log(60), log(40)]), [(1, 3), (4, 5)]);
        assert_eq!(runs(&[log(60), log(90)]), []);
        assert!(gain(&[log(1), log(2)]) > MOST * 3 / 2);
        // More than one whole segment of live bodies becomes several.
        assert_eq!(runs(&[log(40); 5]), [(0, 2), (2, 4), (4, 5)]);
        // What bodies cost besides their bytes counts: tiny ones are not worth it.
        let tiny = Candidate { file: MOST, live_bytes: MOST * 4 / 10, live: MOST / 100, bodies: false };
        assert_eq!(runs(&[tiny]), []);
    }

    /// Small rewritten segments are taken along when a neighbour is rewritten, and merged when they are many; larger
    /// ones are left alone.
    #[test]
    fn small_segments() {
        let small = rewritten(MOST / 100);
        assert_eq!(runs(&[small, log(5)]), [(0, 2)]);
        assert_eq!(runs(&[small; 7]), []);
        assert_eq!(runs(&[small; 8]), [(0, 8)]);
        assert_eq!(runs(&[rewritten(MOST / 4); 20]), []);
    }

    /// In a history of any length, with survivors of any share, the number of files follows what is live.
    #[test]
    fn files_do_not_multiply() {
        let mut segments: Vec<Candidate> = Vec::new();
        for round in 0..2000_u64 {
            segments.push(log(round * 7919 % 5));
            let mut runs = plan(&segments, MOST);
            runs.reverse();
            for run in runs {
                let (live_bytes, live) = segments[run.clone()]
                    .iter()
                    .fold((0, 0), |sum, segment| (sum.0 + segment.live_bytes, sum.1 + segment.live));
                let file = live_bytes + live * BODY_COST;
                segments.splice(run, [Candidate { file, live_bytes, live, bodies: true }]);
            }
            let live: u64 = segments.iter().map(|segment| segment.live_bytes).sum();
            let most = SMALL_PART * live / MOST + 2 * MERGE_MIN as u64;
            assert!(
                (segments.len() as u64) <= most,
                "round {round}: {} files of {live} bytes",
                segments.len()
            );
        }
    }
}
