//! A set of byte positions as sorted, disjoint, half-open ranges.

use std::ops::Range;

/// Sorted, disjoint, half-open ranges of byte positions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranges(Vec<Range<u64>>);

impl Ranges {
    /// Adds a range; answers which parts of it are new.
    pub fn insert(&mut self, range: Range<u64>) -> Vec<Range<u64>> {
        let new = self.missing(&range);
        if range.is_empty() {
            return new;
        }
        let first = self.0.partition_point(|r| r.end < range.start);
        let last = self.0.partition_point(|r| r.start <= range.end);
        let start = self.0.get(first).filter(|_| first < last).map_or(range.start, |r| r.start.min(range.start));
        let end = if first < last { self.0[last - 1].end.max(range.end) } else { range.end };
        self.0.splice(first..last, std::iter::once(start..end));
        new
    }

    pub fn contains(&self, at: u64) -> bool {
        let n = self.0.partition_point(|r| r.end <= at);
        self.0.get(n).is_some_and(|r| r.start <= at)
    }

    /// End of the last range, None when empty.
    pub fn end(&self) -> Option<u64> {
        self.0.last().map(|r| r.end)
    }

    /// The parts of `range` that are in the set.
    pub fn within(&self, range: &Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let range = range.clone();
        let first = self.0.partition_point(|r| r.end <= range.start);
        self.0[first..]
            .iter()
            .take_while(move |r| r.start < range.end)
            .map(move |r| r.start.max(range.start)..r.end.min(range.end))
            .filter(|r| !r.is_empty())
    }

    /// Counts the positions of `range` in the set.
    pub fn overlap(&self, range: &Range<u64>) -> u64 {
        self.within(range).map(|r| r.end - r.start).sum()
    }

    /// The parts of `range` that are not in the set.
    pub fn missing(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let mut at = range.start;
        let mut missing = Vec::new();
        for r in self.within(range) {
            if r.start > at {
                missing.push(at..r.start);
            }
            at = r.end;
        }
        if at < range.end {
            missing.push(at..range.end);
        }
        missing
    }

    /// Forgets whole ranges that end at or before `at`.
    pub fn forget_before(&mut self, at: u64) {
        let n = self.0.partition_point(|r| r.end <= at);
        self.0.drain(..n);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_is_a_set(inserts in prop::collection::vec((0u64..60, 0u64..20), 0..20), probe in (0u64..70, 0u64..30)) {
            let mut ranges = Ranges::default();
            let mut model = BTreeSet::new();
            for (start, len) in inserts {
                let new: u64 = ranges.insert(start..start + len).iter().map(|r| r.end - r.start).sum();
                let before = model.len();
                model.extend(start..start + len);
                prop_assert_eq!(new as usize, model.len() - before);
            }
            let probe = probe.0..probe.0 + probe.1;
            prop_assert_eq!(ranges.overlap(&probe) as usize, probe.clone().filter(|p| model.contains(p)).count());
            let missing: Vec<u64> = ranges.missing(&probe).into_iter().flatten().collect();
            prop_assert_eq!(missing, probe.filter(|p| !model.contains(p)).collect::<Vec<_>>());
            for at in 0..90 {
                prop_assert_eq!(ranges.contains(at), model.contains(&at));
            }
            prop_assert_eq!(ranges.end(), model.last().map(|p| p + 1));
            prop_assert!(ranges.0.windows(2).all(|w| w[0].end < w[1].start));
        }
    }
}
