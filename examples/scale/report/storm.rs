//! Viewers that come back after their node has died: a discrete simulation, viewer by viewer.
//!
//! A viewer behaves like `web/stenocast.js`: it notices, waits a random time that grows with each attempt, connects to a
//! node that the balancer draws, gives up after 10 s. A node serves one viewer after the other, as fast as its spare cores
//! allow.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::fleet::Load;
use super::random::Random;
use super::units::{JOIN, TLS, WS_CLIENTS};
use super::{markdown, number};

const FIRST_DELAY_S: f64 = 1.0;
const MOST_DELAY_S: f64 = 15.0;
const CONNECT_TIMEOUT_S: f64 = 10.0;
/// Two pings without a word: a connection whose machine has vanished is dead.
const SILENCE_S: f64 = 30.0;
/// Viewers heard something within the last second, before the machine vanished.
const LAST_WORD_S: f64 = 1.0;
/// The balancer takes a dead node out after so long.
const HEALTH_S: f64 = 10.0;

/// A fault, and the nodes and viewers that it meets.
struct Scene {
    what: &'static str,
    /// Nodes that may be drawn, the dead one (if any) is the first.
    nodes: usize,
    viewers: usize,
    /// The machine vanished: nothing is refused, everything times out.
    is_silent: bool,
    /// All nodes are away until then.
    away_s: f64,
    has_dead: bool,
}

struct Outcome {
    /// When each viewer was back.
    back_s: Vec<f64>,
    longest_wait_s: f64,
    attempts: usize,
}

fn simulate(scene: &Scene, join_s: f64, random: &mut Random) -> Outcome {
    let mut free_at_s = vec![scene.away_s; scene.nodes];
    let mut events = BinaryHeap::new();
    let key = |time_s: f64| Reverse((time_s * 1e6) as u64);
    let delay_s = |attempt: u32, random: &mut Random| {
        (FIRST_DELAY_S * 2_f64.powi(attempt as i32)).min(MOST_DELAY_S) * (0.25 + 0.75 * random.next())
    };
    for viewer in 0..scene.viewers {
        let noticed_s = if scene.is_silent { SILENCE_S - LAST_WORD_S * random.next() } else { 0.0 };
        events.push((key(noticed_s + delay_s(0, random)), viewer, 0_u32));
    }
    let mut outcome = Outcome { back_s: Vec::new(), longest_wait_s: 0.0, attempts: 0 };
    while let Some((Reverse(micros), viewer, attempt)) = events.pop() {
        let now_s = micros as f64 / 1e6;
        outcome.attempts += 1;
        // Once the balancer knows of the dead node, only the others are drawn.
        let first = usize::from(scene.has_dead && now_s >= HEALTH_S);
        let node = first + random.below(scene.nodes - first);
        let failed_s = match node {
            0 if scene.has_dead => Some(if scene.is_silent { CONNECT_TIMEOUT_S } else { 0.0 }),
            _ if now_s < scene.away_s => Some(0.0),
            _ => None,
        };
        let retry = |failed_s: f64, random: &mut Random| {
            (key(now_s + failed_s + delay_s(attempt + 1, random)), viewer, attempt + 1)
        };
        if let Some(failed_s) = failed_s {
            events.push(retry(failed_s, random));
            continue;
        }
        // The work is done also for a viewer that has given up meanwhile.
        free_at_s[node] = free_at_s[node].max(now_s) + join_s;
        let waited_s = free_at_s[node] - now_s;
        outcome.longest_wait_s = outcome.longest_wait_s.max(waited_s);
        if waited_s > CONNECT_TIMEOUT_S {
            events.push(retry(CONNECT_TIMEOUT_S, random));
        } else {
            outcome.back_s.push(free_at_s[node]);
        }
    }
    outcome.back_s.sort_by(f64::total_cmp);
    outcome
}

pub fn table(load: &Load) -> String {
    let (nodes, of_node) = (load.ws_nodes() as usize, (load.viewers / load.ws_nodes()).ceil() as usize);
    let half = (WS_CLIENTS.value / 2.0) as usize;
    let scenes = [
        Scene {
            what: "a ws node's process dies",
            nodes,
            viewers: of_node,
            is_silent: false,
            away_s: 0.0,
            has_dead: true,
        },
        Scene {
            what: "a ws node's machine vanishes",
            nodes,
            viewers: of_node,
            is_silent: true,
            away_s: 0.0,
            has_dead: true,
        },
        Scene {
            what: "one of two ws nodes dies",
            nodes: 2,
            viewers: half,
            is_silent: false,
            away_s: 0.0,
            has_dead: true,
        },
        // Every node is met by its share, so one stands for all.
        Scene {
            what: "all ws nodes are away for 5 s (of one node)",
            nodes: 1,
            viewers: of_node,
            is_silent: false,
            away_s: 5.0,
            has_dead: false,
        },
    ];
    let mut rows = Vec::new();
    for scene in scenes {
        for (tls, cost_ms) in [("", JOIN.value), (", TLS on the same cores", JOIN.value + TLS.value)] {
            let mut random = Random::new(load.seed);
            let outcome = simulate(&scene, cost_ms / 1000.0 / load.ws_spare_cores(), &mut random);
            let back = |part: f64| number(outcome.back_s[((outcome.back_s.len() - 1) as f64 * part) as usize]);
            let each = outcome.attempts as f64 / scene.viewers as f64;
            let what = format!("{}{tls}", scene.what);
            let wait_ms = number(outcome.longest_wait_s * 1000.0);
            rows.push(vec![
                what,
                number(scene.viewers as f64),
                back(0.5),
                back(0.99),
                back(1.0),
                wait_ms,
                number(each),
            ]);
        }
    }
    markdown(
        &["fault", "viewers", "half are back after s", "99 %", "all", "longest wait at a node, ms", "attempts each"],
        rows,
    )
}
