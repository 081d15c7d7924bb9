//! Where the programs of Postgres are.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

use crate::Error;

/// Folders of installations, and how the names of those that hold a version begin.
const PLACES: [(&str, &str); 5] = [
    ("/usr/lib/postgresql", ""),
    ("/usr", "pgsql-"),
    ("/usr/libexec", "postgresql"),
    ("/opt/homebrew/opt", "postgresql@"),
    ("/usr/local/opt", "postgresql@"),
];

/// The folder with `initdb` and `postgres`: the one that STEPWELL_PG_BIN names, else the first on
/// the PATH, else the highest version in the usual places.
pub(crate) fn binaries() -> Result<PathBuf, Error> {
    let given = std::env::var_os("STEPWELL_PG_BIN").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = PLACES.map(|(place, prefix)| (Path::new(place), prefix));
    find(given.as_deref(), &path, &places)
}

fn find(given: Option<&Path>, path: &OsStr, places: &[(&Path, &str)]) -> Result<PathBuf, Error> {
    if let Some(given) = given {
        return complete(given).ok_or_else(|| {
            let given = given.display();
            Error::Missing(format!(
                "STEPWELL_PG_BIN is {given}, which has no `initdb` and `postgres`: let it name the \
                 folder that has them, or unset it"
            ))
        });
    }
    let on_path = std::env::split_paths(path).find_map(|folder| complete(&folder));
    on_path.or_else(|| installed(places)).ok_or_else(|| {
        Error::Missing(
            "there is no Postgres on this machine: install one (Debian: `apt-get install \
             postgresql`, macOS: `brew install postgresql`), or name the folder of `initdb` and \
             `postgres` by STEPWELL_PG_BIN, or use a database that runs by STEPWELL_DATABASE_URL"
                .into(),
        )
    })
}

/// A folder with both programs. A link leads to the folder they are in really: what belongs to them
/// is found from there.
fn complete(folder: &Path) -> Option<PathBuf> {
    let linked = folder.join("initdb").canonicalize().ok()?;
    let both =
        |folder: &Path| ["initdb", "postgres"].iter().all(|program| folder.join(program).is_file());
    let found = [linked.parent()?, folder].into_iter().find(|folder| both(folder))?;
    // A relative path would not be found from another folder.
    found.canonicalize().ok()
}

fn installed(places: &[(&Path, &str)]) -> Option<PathBuf> {
    let mut versions: Vec<(u32, PathBuf)> = Vec::new();
    for (place, prefix) in places {
        for entry in std::fs::read_dir(place).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let version = name.to_str().and_then(|name| name.strip_prefix(prefix));
            let major = version.and_then(|v| v.split('.').next()?.parse().ok());
            let folder = entry.path();
            let bin = || complete(&folder.join("bin")).or_else(|| complete(&folder));
            versions.extend(major.and_then(|major| Some((major, bin()?))));
        }
    }
    versions.into_iter().max().map(|(_, bin)| bin)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::folder;

    struct Machine(PathBuf);

    impl Machine {
        fn new() -> Self {
            Self(folder::make(None, false).unwrap().canonicalize().unwrap())
        }

        fn install(&self, folder: &str, programs: &[&str]) -> PathBuf {
            let folder = self.0.join(folder);
            std::fs::create_dir_all(&folder).unwrap();
            for program in programs {
                std::fs::write(folder.join(program), "").unwrap();
            }
            folder
        }

        fn find(&self, given: Option<&Path>, path: &[&Path]) -> Result<PathBuf, String> {
            let path = std::env::join_paths(path).unwrap();
            let place = self.0.join("lib");
            find(given, &path, &[(&place, ""), (&self.0, "pgsql-")])
                .map_err(|error| error.to_string())
        }
    }

    impl Drop for Machine {
        fn drop(&mut self) {
            folder::remove(&self.0);
        }
    }

    const BOTH: [&str; 2] = ["initdb", "postgres"];

    #[test]
    fn without_a_postgres_the_fix_is_named() {
        let machine = Machine::new();
        let refused = machine.find(None, &[&machine.0]).unwrap_err();
        for word in ["install", "STEPWELL_PG_BIN", "STEPWELL_DATABASE_URL"] {
            assert!(refused.contains(word), "{refused}");
        }
        let half = machine.install("half", &["initdb"]);
        let refused = machine.find(Some(&half), &[]).unwrap_err();
        assert!(refused.contains("half") && refused.contains("STEPWELL_PG_BIN"), "{refused}");
        assert!(machine.find(None, &[&half]).is_err(), "one program is not enough");
    }

    #[test]
    fn what_is_given_goes_before_the_path_and_that_before_the_usual_places() {
        let machine = Machine::new();
        let old = machine.install("lib/9.6/bin", &BOTH);
        assert_eq!(machine.find(None, &[]).unwrap(), old);
        let low = machine.install("pgsql-14/bin", &BOTH);
        assert_eq!(machine.find(None, &[]).unwrap(), low, "9.6 is not 96");
        let high = machine.install("lib/16/bin", &BOTH);
        machine.install("lib/17/bin", &["initdb"]);
        assert_eq!(machine.find(None, &[]).unwrap(), high, "17 is half there");
        let path = machine.install("path", &BOTH);
        assert_eq!(machine.find(None, &[&path]).unwrap(), path);
        assert_eq!(machine.find(Some(&low), &[&path]).unwrap(), low);
    }

    #[test]
    fn a_link_leads_to_where_the_programs_are() {
        let machine = Machine::new();
        let real = machine.install("lib/15/bin", &BOTH);
        let links = machine.install("links", &[]);
        symlink(real.join("initdb"), links.join("initdb")).unwrap();
        assert_eq!(machine.find(None, &[&links]).unwrap(), real, "even if one is not linked");
        let away = machine.install("away", &["initdb"]);
        let wrapped = machine.install("wrapped", &["postgres"]);
        symlink(away.join("initdb"), wrapped.join("initdb")).unwrap();
        assert_eq!(machine.find(None, &[&wrapped]).unwrap(), wrapped, "else they are taken as one");
    }
}
