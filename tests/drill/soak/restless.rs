//! A viewer that leaves and comes back at random, by WebSocket or server-sent events, and always goes on where it was.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::harness::lasts;
use crate::harness::watcher::{Connection, Shared};
use crate::support::app::viewer_token;

/// Watches a room to its session's end, or until the last other holder of the answer lets go.
pub fn watch(http: SocketAddr, slug: &str, mut draws: StdRng) -> Shared {
    let seen = Shared::default();
    let (weak, slug) = (Rc::downgrade(&seen), slug.to_owned());
    actix_rt::spawn(async move {
        while let Some(seen) = weak.upgrade() {
            if seen.borrow().has_status("ended") {
                return;
            }
            let stays = Duration::from_millis(draws.random_range(300..8000));
            let kind = draws.random_range(0..4);
            let visit = async {
                match kind {
                    0 | 1 => {
                        if let Ok(mut connection) = Connection::open(http, &slug, seen.clone()).await {
                            while connection.next().await.is_ok() {}
                        }
                    }
                    _ => {
                        let _ = read_events(http, &slug, &seen, kind == 2).await;
                    }
                }
            };
            // It goes as a closed laptop does: without a word.
            let _ = tokio::time::timeout(stays, visit).await;
            drop(seen);
            lasts(Duration::from_millis(draws.random_range(50..1500))).await;
        }
    });
    seen
}

/// Reads the room's server-sent events to their end; it asks for what it lacks by the query, or by Last-Event-ID.
async fn read_events(http: SocketAddr, slug: &str, seen: &Shared, by_query: bool) -> std::io::Result<()> {
    let query = seen.borrow().resume();
    let resumes = !query.is_empty();
    let id = match &seen.borrow().epoch {
        Some(epoch) if !by_query => format!("Last-Event-ID: {epoch}:{}\r\n", seen.borrow().last_seq),
        _ => String::new(),
    };
    let query = if id.is_empty() { query } else { String::new() };
    let mut socket = TcpStream::connect(http).await?;
    let bearer = viewer_token(slug);
    let head = format!(
        "GET /api/realtime/events?session={slug}{query} HTTP/1.0\r\nHost: soak\r\nAuthorization: Bearer {bearer}\r\n{id}\r\n"
    );
    socket.write_all(head.as_bytes()).await?;
    let mut lines = BufReader::new(socket).lines();
    let status = lines.next_line().await?.unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        return Ok(());
    }
    while let Some(line) = lines.next_line().await? {
        if line == "event: close" {
            return Ok(());
        }
        let Some(data) = line.strip_prefix("data: ") else { continue };
        let value = serde_json::from_str(data).expect("the server sends JSON");
        seen.borrow_mut().take(slug, resumes, value);
    }
    Ok(())
}
