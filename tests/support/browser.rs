//! The captions page in a real Chromium.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::npm;
use super::wait::DEADLINE;

const CHROMIUM: &str = "/usr/bin/chromium";

pub struct Browser {
    commands: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    _node: Child,
}

impl Browser {
    pub fn start() -> Self {
        assert!(Path::new(CHROMIUM).exists(), "{CHROMIUM} is needed; run `apt-get install chromium`");
        let place = npm::install("browser");
        let mut node = Command::new("node");
        node.args(["driver.mjs", CHROMIUM]).current_dir(place).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut node = node.kill_on_drop(true).spawn().expect("node is needed; run `apt-get install nodejs npm`");
        let commands = node.stdin.take().unwrap();
        let answers = BufReader::new(node.stdout.take().unwrap()).lines();
        Self { commands, answers, _node: node }
    }

    pub async fn ask(&mut self, command: &str, mut options: Value) -> Result<Value, String> {
        options["command"] = command.into();
        self.commands.write_all(format!("{options}\n").as_bytes()).await.unwrap();
        let answer = tokio::time::timeout(DEADLINE, self.answers.next_line()).await.expect("an answer in time");
        let answer: Value = serde_json::from_str(&answer.unwrap().expect("the driver lives")).unwrap();
        match answer.get("ok") {
            Some(ok) => Ok(ok.clone()),
            None => Err(answer["error"].to_string()),
        }
    }

    pub async fn act(&mut self, command: &str, options: Value) -> Value {
        self.ask(command, options.clone()).await.unwrap_or_else(|error| panic!("{command} {options}: {error}"))
    }

    pub async fn eval(&mut self, js: &str) -> Value {
        self.act("evaluate", json!({"js": js})).await
    }

    pub async fn wait(&mut self, js: &str) {
        if let Err(error) = self.ask("wait", json!({"js": js})).await {
            let text = self.eval("document.body.innerText").await;
            panic!("{js}: {error}; the page says {text}");
        }
    }

    pub async fn badge(&mut self, status: &str) {
        self.wait(&format!("document.querySelector('#badge').dataset.status === '{status}'")).await;
    }

    pub async fn screenshot(&mut self, name: &str) {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("page");
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join(format!("{name}.png"));
        self.act("screenshot", json!({"path": path})).await;
        assert!(std::fs::metadata(&path).unwrap().len() > 5000);
    }

    /// Sequence numbers of the finals on the page, in their order.
    pub async fn seqs(&mut self) -> Vec<u64> {
        let seqs = self.eval("[...document.querySelectorAll('#finals .line')].map(n => Number(n.dataset.seq))").await;
        serde_json::from_value(seqs).unwrap()
    }

    /// Accessible to those who cannot see or point, as far as axe-core finds out.
    pub async fn is_accessible(&mut self) {
        assert_eq!(self.act("axe", json!({})).await, json!([]));
    }

    pub async fn no_problems(&mut self) {
        assert_eq!(self.act("problems", json!({})).await, json!([]));
    }
}
