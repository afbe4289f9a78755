//! Ready-made links and commands, printed at start with `--dev`. The dev token, and the pair that was made up for it, are
//! the only secrets that are ever shown.

use std::io::{self, Write};

use crate::app::App;
use crate::livekit::token;
use crate::transcript::Slug;

/// The room that the links are for.
pub const DEMO_ROOM: &str = "demo";
const TOKEN_LIFE: std::time::Duration = std::time::Duration::from_secs(24 * 3600);

/// A viewer's token of `room`, signed with the first configured key.
pub fn viewer_token(app: &App, room: &Slug, identity: &str) -> String {
    let (key, secret) = app.keys().signer();
    token::mint(&key, &secret, identity, None, room, TOKEN_LIFE, false)
}

/// Address of the captions page for `room`.
pub fn captions_url(app: &App, room: &Slug, token: &str) -> String {
    let base = &app.config().viewers.base_path;
    format!("http://{}{base}/?session={room}&token={token}", reachable(app.http_addr()))
}

/// An address that a browser on this machine can open.
pub fn reachable(addr: std::net::SocketAddr) -> String {
    if addr.ip().is_loopback() || addr.ip().is_unspecified() {
        format!("localhost:{}", addr.port())
    } else {
        addr.to_string()
    }
}

/// Prints the links; nobody may be there to read them.
pub fn print(app: &App) {
    let _ = io::stdout().write_all(links(app).as_bytes());
}

fn links(app: &App) -> String {
    let room = Slug::parse(DEMO_ROOM).expect("a plain room name");
    let token = viewer_token(app, &room, "dev");
    let mut lines = vec![format!("captions   {}", captions_url(app, &room, &token))];
    let config = app.config();
    if let Some(rtmp) = app.rtmp_addr() {
        let url = match config.rtmp.publish_key {
            None => format!("rtmp://{}/live/{room}", reachable(rtmp)),
            // A key is not for logs.
            Some(_) => format!("\"$(stenocast token --publish --room {room} --rtmp-port {})\"", rtmp.port()),
        };
        lines.push(format!("publish    ffmpeg -re -i tests/fixtures/speech/librivox_0870.wav -c:a aac -f flv {url}"));
    }
    let bearer = if config.auth.admin_token.is_some() { "-H \"Authorization: Bearer $ADMIN_TOKEN\" " } else { "" };
    lines.push(format!("metrics    curl {bearer}http://{}/metrics", reachable(app.http_addr())));
    lines.push(format!("token      {token}"));
    if config.auth.is_generated {
        let (key, secret) = &config.auth.keys[0];
        // Shown this once, so that `stenocast token` and LiveKit's SDKs can mint tokens of other rooms.
        lines.push(format!("keys       LIVEKIT_API_KEY={key} LIVEKIT_API_SECRET={}", secret.expose()));
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}
