//! Clocks of machines are never asked: time is Postgres's, and waits are on clocks that only go
//! forward. So a clock that is wrong, or jumps, changes nothing. Only a webhook says when it was sent and reads
//! dates from others: a receiver that finds it too old refuses it, and gets it again.

use std::path::Path;

fn sources(folder: &Path, into: &mut Vec<(String, String)>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            // What stands in a file's own tests is not the service's.
            let text = text.split("#[cfg(test)]").next().unwrap().to_owned();
            into.push((path.display().to_string(), text));
        }
    }
}

#[test]
fn no_service_and_no_client_asks_what_time_it_is() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut all = Vec::new();
    for folder in
        ["services/store", "services/task", "services/step", "services/event", "clients/rust"]
    {
        sources(&root.join(folder).join("src"), &mut all);
    }
    assert!(all.len() > 50);
    let (outward, all): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|(path, _)| path.ends_with("event/src/courier/webhook.rs"));
    assert_eq!(outward.len(), 1);
    for (path, text) in &all {
        // A user may hand over a time (`Start::At`): only asking for one is refused.
        for clock in [
            "SystemTime::now",
            "UNIX_EPOCH.elapsed",
            "UNIX_EPOCH).elapsed",
            "Utc::now",
            "Local::now",
            "OffsetDateTime::now",
        ] {
            assert!(!text.contains(clock), "{path} asks {clock}");
        }
    }
}
