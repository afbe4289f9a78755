//! A thousand viewers over twenty rooms: each gets everything, nobody is left behind when they go.

mod support;

use futures_util::future::join_all;
use support::http::*;
use support::wait::until;

const ROOMS: usize = 20;
const PER_ROOM: usize = 50;
const LINES: usize = 20;

#[actix::test]
async fn a_thousand_viewers_get_every_line() {
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, 8192, 8192)
        .expect("this test needs 8192 open files; raise the hard limit with `ulimit -n 8192`");
    let server = TestServer::start();
    let speeches: Vec<_> = (0..ROOMS).map(|n| server.begin(&format!("room-{n}"))).collect();
    let mut clients = Vec::new();
    for _ in 0..PER_ROOM {
        let rooms: Vec<String> = (0..ROOMS).map(|n| format!("room-{n}")).collect();
        let opened = join_all(rooms.iter().map(|room| server.view(room, ""))).await;
        clients.extend(opened);
    }
    assert_eq!(server.state.viewers.len(), ROOMS * PER_ROOM);
    for client in &mut clients {
        assert_eq!(client.next().await["type"], "hello");
    }
    for _ in 0..LINES {
        speeches.iter().for_each(|speech| speech.say(1));
    }
    let all: Vec<u64> = (1..=LINES as u64).collect();
    for client in &mut clients {
        assert_eq!(client.seqs(LINES).await, all);
    }
    let sent = server.state.metrics.ws_messages_sent_total.get();
    assert_eq!(sent as usize, ROOMS * PER_ROOM * (LINES + 1));
    let live = || server.state.metrics.actors_live.with_label_values(&["ws_client"]).get();
    assert_eq!(live() as usize, ROOMS * PER_ROOM);
    drop(clients);
    until("all gone", async || server.state.viewers.is_empty() && live() == 0).await;
    server.stop().await;
}
