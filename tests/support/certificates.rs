//! Certificates of an authority of our own.

use std::path::Path;
use std::process::Command;

/// An authority that nobody knows, and its certificate for 127.0.0.1.
const MAKE_CERTIFICATES: &str = "\
set -e; new='-nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1'
openssl req -x509 -days 30 $new -subj /CN=authority -keyout ca.key -out ca.pem
openssl req $new -subj /CN=ws -keyout ws.key -out ws.csr
echo subjectAltName=IP:127.0.0.1 >ext
openssl x509 -req -in ws.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 -extfile ext -out ws.pem";

/// Makes `ca.pem`, `ws.pem` and `ws.key` in this folder.
pub fn make(dir: &Path) {
    let made = Command::new("sh").args(["-c", MAKE_CERTIFICATES]).current_dir(dir).output();
    let made = made.expect("a shell");
    assert!(made.status.success(), "openssl is needed: {}", String::from_utf8_lossy(&made.stderr));
}
