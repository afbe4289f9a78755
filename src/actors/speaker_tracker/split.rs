//! Whose are these words? Pure: from the activity under each word to runs of words of one speaker each.

use std::ops::Range;

/// Activity under one word, in ms, of each candidate, for one delay or on the average of several.
pub type Under = Vec<f32>;

/// How sure is sure enough.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// A speaker must have been active in so much of the spoken time.
    pub least_share: f32,
    /// And in so much more of it than anybody else.
    pub margin: f32,
    /// What a change between two words costs, in ms of activity, where there is no pause between them.
    pub change_ms: f32,
    /// What each ms of a pause takes off that, and down to what.
    pub pause_discount: f32,
    pub change_least_ms: f32,
}

/// Runs of words with one candidate each, so that as much activity as possible lies under the words of whoever has them.
/// `pauses_ms[n]` is the pause before word `n`.
pub fn runs(under: &[Under], pauses_ms: &[f32], rules: &Rules) -> Vec<(Range<usize>, usize)> {
    let candidates = under.first().map_or(0, Vec::len);
    if candidates == 0 {
        return Vec::new();
    }
    // Viterbi: the best sum up to each word, for each candidate, and whether it came from another one.
    let mut best = under[0].clone();
    let mut came_from: Vec<Vec<usize>> = vec![(0..candidates).collect()];
    for (n, word) in under.iter().enumerate().skip(1) {
        let cost = (rules.change_ms - rules.pause_discount * pauses_ms[n]).max(rules.change_least_ms);
        let (leader, most) = heaviest(&best);
        let from: Vec<usize> = (0..candidates).map(|c| if best[c] >= most - cost { c } else { leader }).collect();
        best = (0..candidates).map(|c| best[c].max(most - cost) + word[c]).collect();
        came_from.push(from);
    }
    let mut candidate = heaviest(&best).0;
    let mut end = under.len();
    let mut runs = Vec::new();
    for n in (0..under.len()).rev() {
        let from = came_from[n][candidate];
        if n == 0 || from != candidate {
            runs.push((n..end, candidate));
            (end, candidate) = (n, from);
        }
    }
    runs.reverse();
    runs
}

/// The speaker of words of `spoken_ms`, by the activity of each candidate under them. None: it is not clear.
pub fn clear_speaker(active_ms: &[f32], spoken_ms: f32, rules: &Rules) -> Option<usize> {
    if active_ms.is_empty() || spoken_ms <= 0.0 {
        return None;
    }
    let (best, most) = heaviest(active_ms);
    let second = active_ms.iter().enumerate().filter(|(c, _)| *c != best).map(|(_, ms)| *ms).fold(0.0, f32::max);
    let is_clear = most >= rules.least_share * spoken_ms && most - second >= rules.margin * spoken_ms;
    is_clear.then_some(best)
}

fn heaviest(sums: &[f32]) -> (usize, f32) {
    let first = (0, f32::MIN);
    sums.iter().copied().enumerate().fold(first, |most, next| if next.1 > most.1 { next } else { most })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules =
        Rules { least_share: 0.4, margin: 0.3, change_ms: 260.0, pause_discount: 0.4, change_least_ms: 120.0 };

    #[test]
    fn a_run_changes_only_for_more_than_a_change_costs() {
        let under = |c: &usize| (0..2).map(|n| if n == *c { 200.0 } else { 0.0 }).collect();
        let told = |who: &[usize], pause_ms: f32| {
            let under: Vec<Under> = who.iter().map(under).collect();
            runs(&under, &vec![pause_ms; who.len()], &RULES)
        };
        assert_eq!(told(&[0, 0, 0, 1, 1, 1], 0.0), [(0..3, 0), (3..6, 1)]);
        assert_eq!(told(&[0, 0, 0, 1, 0, 0], 0.0), [(0..6, 0)], "one word");
        assert_eq!(told(&[0, 0, 0, 1, 0, 0], 400.0), [(0..6, 0)], "one word between pauses, there and back");
        assert_eq!(told(&[0, 0, 0, 1], 400.0), [(0..3, 0), (3..4, 1)], "an answer after a pause");
        assert_eq!(told(&[1], 0.0), [(0..1, 1)]);
        assert_eq!(runs(&[], &[], &RULES), []);
        assert_eq!(runs(&[vec![], vec![]], &[0.0, 0.0], &RULES), [], "nobody");
    }

    #[test]
    fn a_speaker_is_clear_by_share_and_by_margin() {
        let clear = |active: &[f32]| clear_speaker(active, 1000.0, &RULES);
        assert_eq!([clear(&[900.0, 500.0]), clear(&[300.0, 390.0]), clear(&[1000.0, 800.0])], [Some(0), None, None]);
        assert_eq!([clear(&[]), clear(&[0.0]), clear_speaker(&[1.0], 0.0, &RULES)], [None; 3]);
    }
}
