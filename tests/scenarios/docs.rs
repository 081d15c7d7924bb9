//! What the documents say is proved, is.

use std::path::Path;

fn functions(folder: &Path, into: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        if path.is_dir() && name != "target" && name != "node_modules" && name != ".git" {
            functions(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            *into += &std::fs::read_to_string(&path).unwrap();
        }
    }
}

#[test]
fn every_test_that_a_document_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut code = String::new();
    functions(root, &mut code);
    let mut named = 0;
    for document in [
        "docs/behaviour.md",
        "docs/faults.md",
        "docs/feed.md",
        "docs/limits.md",
        "docs/reading.md",
        "ARCHITECTURE.md",
        "tests/verbs/life.rs",
    ] {
        let text = std::fs::read_to_string(root.join(document)).unwrap();
        // Names of tests tell a story: four words and more.
        for name in text.split('`').skip(1).step_by(2) {
            let is_test = name.matches('_').count() >= 3
                && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
            if is_test {
                named += 1;
                assert!(code.contains(&format!("fn {name}(")), "{document} names {name}");
            }
        }
    }
    assert!(named > 120, "{named} names");
}
