//! Ready-made links and commands, printed at start with `--dev`. The dev token is the one secret that is ever shown.

use crate::app::App;
use crate::config::Secret;
use crate::livekit::token;
use crate::log::Slug;

/// The room that the links are for.
pub const DEMO_ROOM: &str = "demo";
const TOKEN_LIFE: std::time::Duration = std::time::Duration::from_secs(24 * 3600);

/// A viewer's token of `room`, signed with the first configured key.
pub fn viewer_token(app: &App, room: &Slug, identity: &str) -> String {
    let (key, secret): &(String, Secret) = &app.config().auth.keys[0];
    token::mint(key, secret, identity, None, room, TOKEN_LIFE, false)
}

/// Address of the captions page for `room`.
pub fn captions_url(app: &App, room: &Slug, token: &str) -> String {
    format!("http://{}/?session={room}&token={token}", reachable(app.http_addr()))
}

/// An address that a browser on this machine can open.
pub fn reachable(addr: std::net::SocketAddr) -> String {
    if addr.ip().is_loopback() || addr.ip().is_unspecified() {
        format!("localhost:{}", addr.port())
    } else {
        addr.to_string()
    }
}

pub fn print(app: &App) {
    let room = Slug::parse(DEMO_ROOM).expect("a plain room name");
    let token = viewer_token(app, &room, "dev");
    println!("captions   {}", captions_url(app, &room, &token));
    if let Some(rtmp) = app.rtmp_addr() {
        println!(
            "publish    ffmpeg -re -i tests/fixtures/speech/librivox_0870.wav -c:a aac -f flv rtmp://{}/live/{room}",
            reachable(rtmp)
        );
    }
    println!("metrics    curl http://{}/metrics", reachable(app.http_addr()));
    println!("token      {token}");
}
