//! Tells the nodes that number the logs who speaks and who watches here.

use std::rc::Rc;
use std::time::Duration;

use super::Shared;
use crate::bus::log_server::Topic;
use crate::bus::wire::NodeReports;

/// Interval in which it is told without news: viewers come and go.
const INTERVAL: Duration = Duration::from_secs(2);
/// Time for more reports to come after the first one.
const GATHER: Duration = Duration::from_millis(10);

pub(super) async fn tell(shared: Rc<Shared>) {
    let params = &shared.params;
    // What an earlier life of this actor has told is not told again.
    let mut after = params.reports.last();
    loop {
        if tokio::time::timeout(INTERVAL, params.reports.wait_after(after)).await.is_ok() {
            tokio::time::sleep(GATHER).await;
        }
        let reports = params.reports.after(after, params.directory.viewers());
        after = reports.next;
        let told = NodeReports { node: params.node.clone(), reports };
        params.server.tell(Topic::Reports, told.to_bytes());
    }
}
