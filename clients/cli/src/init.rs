//! `stepwell init`: a small project that runs, with a definition, an executor, and the commands to try.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;

use crate::{fault::Fault, output};

/// How many of the files in the way are told.
const TOLD: usize = 10;

/// `stepwell init`
#[derive(Args)]
pub(crate) struct Init {
    /// The folder, made if it is not there; this one unless given.
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// Write into a folder that is not empty. What is there stays as it is.
    #[arg(long)]
    force: bool,
    /// The folder of the Rust client, which the project depends on. That of the source that this `stepwell` was built
    /// from, unless given.
    #[arg(long, value_name = "DIR")]
    client_path: Option<PathBuf>,
}

/// The files of a project: path, text.
fn files(project: &str, client: &str) -> [(&'static str, String); 5] {
    let text = |template: &str| template.replace("PROJECT", project).replace("CLIENT", client);
    [
        (".gitignore", include_str!("init/gitignore").to_owned()),
        ("Cargo.toml", text(include_str!("init/Cargo.toml.in"))),
        ("README.md", text(include_str!("init/README.md.in"))),
        ("definition.yaml", include_str!("init/definition.yaml").to_owned()),
        ("src/main.rs", text(include_str!("init/main.rs.in"))),
    ]
}

impl Init {
    pub(crate) fn run(self) -> Result<ExitCode, Fault> {
        let client = self.client()?;
        // Looked at before anything is written.
        let there = entries(&self.dir)?;
        if !self.force && !there.is_empty() {
            return Err(self.not_empty(&there));
        }
        std::fs::create_dir_all(self.dir.join("src"))
            .map_err(|error| unwritten(&self.dir, &error))?;
        let dir = std::fs::canonicalize(&self.dir)?;
        for (file, text) in files(&project(dir.file_name()), &client) {
            let path = dir.join(file);
            match write_new(&path, &text) {
                Ok(()) => output::line(format!("wrote {file}"))?,
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                    output::line(format!("kept  {file}"))?;
                }
                Err(error) => return Err(unwritten(&path, &error)),
            }
        }
        output::line("README.md has the commands to try")?;
        Ok(ExitCode::SUCCESS)
    }

    /// The client's folder as it stands in Cargo.toml.
    fn client(&self) -> Result<String, Fault> {
        let built_from = || Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("rust");
        let path = self.client_path.clone().unwrap_or_else(built_from);
        let wrong = |why: &str| {
            Fault::usage(format!("{} is not the folder of the Rust client", path.display()))
                .because(why)
                .hint("stepwell init --client-path DIR, where DIR is clients/rust of Stepwell's source")
        };
        let manifest = std::fs::read_to_string(path.join("Cargo.toml"));
        let manifest = manifest.map_err(|error| wrong(&format!("its Cargo.toml: {error}")))?;
        if !manifest.lines().any(|line| line.trim() == "name = \"stepwell-client\"") {
            return Err(wrong("its Cargo.toml is not that of stepwell-client"));
        }
        let path = std::fs::canonicalize(&path)?;
        // As a TOML string, without the quotes.
        let text = path.to_str().ok_or_else(|| wrong("its path is not UTF-8"))?;
        Ok(text.replace('\\', "\\\\").replace('"', "\\\""))
    }

    fn not_empty(&self, there: &[String]) -> Fault {
        let mut told: Vec<&str> = there.iter().take(TOLD).map(String::as_str).collect();
        let more = format!("and {} more", there.len().saturating_sub(TOLD));
        if there.len() > TOLD {
            told.push(&more);
        }
        Fault::usage(format!("{} is not empty", self.dir.display()))
            .because(format!("there are {}", told.join(", ")))
            .hint("stepwell init --force, which keeps what is there")
    }
}

/// Names of what is in a folder, sorted; of a folder that is not there, none.
fn entries(dir: &Path) -> Result<Vec<String>, Fault> {
    let read = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read.map_err(|error| unwritten(dir, &error))?,
    };
    let names = read.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let mut names = names.collect::<std::io::Result<Vec<String>>>()?;
    names.sort();
    Ok(names)
}

/// Writes a file that must not be there.
fn write_new(path: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write;
    std::fs::File::create_new(path)?.write_all(text.as_bytes())
}

fn unwritten(path: &Path, error: &std::io::Error) -> Fault {
    Fault::usage(format!("cannot write {}", path.display())).because(error.to_string())
}

/// A name for the package, out of the folder's: small letters, digits, `-` and `_`, a letter first.
fn project(folder: Option<&OsStr>) -> String {
    let folder = folder.unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let fits = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' };
    let name: String = folder.chars().map(fits).collect();
    let name = name.trim_matches(['-', '_']);
    match name.chars().next() {
        None => "hello".to_owned(),
        Some(first) if first.is_ascii_digit() => format!("p{name}"),
        Some(_) => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_is_called_as_its_folder_as_far_as_packages_can_be() {
        for (folder, name) in [
            ("shop", "shop"),
            ("My Shop.2", "my-shop-2"),
            ("7up", "p7up"),
            ("_", "hello"),
            ("", "hello"),
            ("köln", "k-ln"),
        ] {
            assert_eq!(project(Some(OsStr::new(folder))), name, "{folder}");
        }
    }
}
