//! Recogniser services in this process: marked tones without a model, or real speech with the real one.

use serde_json::{Value, json};
use stenocast::config::default_model_dir;
use stenocast::local_stt::service::{EngineKind, Limits, SttOptions, SttService, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A running recogniser. It stops with the test's system.
pub struct Stt {
    pub url: String,
    pub service: SttService,
}

/// "marker N" for `stenocast::local_stt::marker::synthesise(N)`.
pub async fn marker_service() -> Stt {
    start(EngineKind::Marker).await
}

/// Silero and Moonshine.
pub async fn moonshine() -> Stt {
    start(EngineKind::Moonshine).await
}

async fn start(engine: EngineKind) -> Stt {
    let model_dir = std::env::var_os("MODEL_DIR").map_or_else(default_model_dir, Into::into);
    let options = SttOptions {
        host: "127.0.0.1".into(),
        port: 0,
        model_dir,
        threads: 1,
        max_sessions: 64,
        engine,
        faults: true,
        keep_audio: false,
        limits: Limits::default(),
    };
    let service = serve(options).await.expect("the recogniser starts; `make models` installs its files");
    Stt { url: service.base_url(), service }
}

impl Stt {
    /// Switches faults: see the table in `src/local_stt/service/faults.rs`. Answers how many sessions were reached.
    pub async fn fault(&self, order: Value) -> u64 {
        let body = order.to_string();
        let mut socket = tokio::net::TcpStream::connect(self.service.addr()).await.expect("the service listens");
        let head = format!(
            "POST /faults HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        socket.write_all(head.as_bytes()).await.expect("written");
        socket.write_all(body.as_bytes()).await.expect("written");
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.expect("answered");
        let body = answer.split("\r\n\r\n").nth(1).expect("a body");
        let json: Value = serde_json::from_str(body).unwrap_or_else(|_| panic!("faults refused: {answer}"));
        json["sessions"].as_u64().unwrap_or_else(|| panic!("faults refused: {answer}"))
    }

    /// Resets every recogniser socket.
    pub async fn drop_sockets(&self) {
        assert!(self.fault(json!({ "reset": true })).await > 0, "a session was there to be cut");
    }
}
