//! Real reverse proxies, with the configuration that `docs/PROXIES.md` gives to people.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::wait::until_blocking;

const DOCUMENT: &str = include_str!("../../docs/PROXIES.md");

/// Ends when dropped.
pub struct Front {
    pub addr: SocketAddr,
    program: Child,
    _dir: TempDir,
}

impl Front {
    /// nginx with an `http` section, in which `UPSTREAM` and `LISTEN` stand for the addresses and `DIR` for a folder.
    pub fn nginx(upstream: SocketAddr, http: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let temporary =
            ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|kind| format!("{kind}_temp_path DIR/{kind};"));
        let whole = format!(
            "daemon off; master_process off; pid DIR/pid; error_log DIR/error.log; events {{ worker_connections 256; }}\n\
             http {{ access_log off; {} types {{ text/html html; }} {http} }}",
            temporary.join(" ")
        );
        std::fs::write(dir.path().join("users"), "anna:{PLAIN}secret\n").unwrap();
        Self::start(dir, upstream, &whole, |config| {
            // Outside of most people's PATH.
            let installed = std::path::Path::new("/usr/sbin/nginx");
            let mut nginx = Command::new(if installed.exists() { installed } else { "nginx".as_ref() });
            nginx.arg("-c").arg(config);
            nginx
        })
    }

    /// nginx as documented, with `more` in its server.
    pub fn documented_nginx(upstream: SocketAddr, more: &str) -> Self {
        let documented = documented("nginx")
            .replace("listen 80;", &format!("listen LISTEN; {more}"))
            .replace("127.0.0.1:8080", "UPSTREAM")
            .replace("/var/log/nginx", "DIR");
        Self::nginx(upstream, &documented)
    }

    pub fn documented_caddy(upstream: SocketAddr) -> Self {
        let documented = documented("caddy").replace(":80 {", "http://LISTEN {").replace("127.0.0.1:8080", "UPSTREAM");
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().to_owned();
        Self::start(dir, upstream, &format!("{{\n\tadmin off\n}}\n{documented}"), |config| {
            let mut caddy = Command::new("caddy");
            caddy.args(["run", "--adapter", "caddyfile", "--config"]).arg(config);
            caddy.env("HOME", &home).env("XDG_DATA_HOME", &home).env("XDG_CONFIG_HOME", &home);
            caddy
        })
    }

    fn start(dir: TempDir, upstream: SocketAddr, config: &str, command: impl Fn(&std::path::Path) -> Command) -> Self {
        // Neither program takes port 0.
        let addr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let config = config
            .replace("UPSTREAM", &upstream.to_string())
            .replace("LISTEN", &addr.to_string())
            .replace("DIR", dir.path().to_str().unwrap());
        let path = dir.path().join("config");
        std::fs::write(&path, config).unwrap();
        let log = std::fs::File::create(dir.path().join("output")).unwrap();
        let mut command = command(&path);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let mut program = command.spawn().expect("nginx and caddy are needed; run `scripts/setup.sh test`");
        until_blocking("the proxy listens", || {
            let output = || std::fs::read_to_string(dir.path().join("output")).unwrap_or_default();
            assert!(program.try_wait().unwrap().is_none(), "the proxy ended: {}", output());
            TcpStream::connect(addr).map_err(|_| output())
        });
        Self { addr, program, _dir: dir }
    }

    /// What it has logged of requests.
    pub fn access_log(&self) -> String {
        std::fs::read_to_string(self._dir.path().join("captions.log")).unwrap_or_default()
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

fn documented(name: &str) -> String {
    let begin = format!("<!-- {name}: begin");
    let (_, rest) = DOCUMENT.split_once(&begin).expect("the document has an example");
    let (block, _) = rest.split_once(&format!("<!-- {name}: end")).expect("an end");
    let lines = block.lines().skip_while(|line| !line.starts_with("```")).skip(1);
    lines.take_while(|line| !line.starts_with("```")).map(|line| format!("{line}\n")).collect()
}
