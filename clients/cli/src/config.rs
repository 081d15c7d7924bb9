//! `stepwell config`, and the file behind it: profiles, each with the addresses and the namespace of a place
//! that one works with. A flag goes before the environment, that before the profile, that before the default.

use std::{io::ErrorKind::NotFound, path::PathBuf, process::ExitCode, sync::OnceLock};

use clap::{Args, Subcommand};
use serde::Serialize;
use stepwell_client::Addresses;
use stepwell_rule::suggestion;
use toml_edit::{DocumentMut, Item, Table, TableLike, value};

use crate::{fault::Fault, output};

/// The profile that holds unless another is named.
const DEFAULT: &str = "default";
/// What a profile has: key, variable of the environment, default.
const KEYS: [(&str, &str, &str); 4] = [
    ("task_address", "STEPWELL_TASK_ADDRESS", "http://127.0.0.1:7101"),
    ("step_address", "STEPWELL_STEP_ADDRESS", "http://127.0.0.1:7102"),
    ("event_address", "STEPWELL_EVENT_ADDRESS", "http://127.0.0.1:7103"),
    ("namespace", "STEPWELL_NAMESPACE", "default"),
];
/// The profile that was named on the command line or in the environment.
static NAMED: OnceLock<String> = OnceLock::new();

/// Which profile, whichever the command.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Services")]
pub(crate) struct Choice {
    /// The profile of the configuration: where the services are, and the namespace. See `stepwell config`.
    #[arg(long, env = "STEPWELL_PROFILE", global = true)]
    profile: Option<String>,
}

impl Choice {
    /// Holds for the process from now on.
    pub(crate) fn apply(self) {
        if let Some(profile) = self.profile.filter(|profile| !profile.is_empty()) {
            let _ = NAMED.set(profile);
        }
    }
}

/// `stepwell config`
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Show what holds for a key, from wherever it comes.
    Get(Get),
    /// Write a key of a profile into the file; `profile` names the profile that holds from now on.
    Set(Set),
    /// Show what holds, and where it comes from.
    List(List),
    /// Show where the file is.
    Path,
}

#[derive(Args)]
pub(crate) struct Get {
    /// task_address, step_address, event_address, namespace or profile.
    key: String,
}

#[derive(Args)]
pub(crate) struct Set {
    /// task_address, step_address, event_address, namespace or profile.
    key: String,
    /// What it is to be, without blanks around it; of addresses several with commas. Empty: nothing, so that
    /// the default holds; a profile has a name.
    value: String,
}

#[derive(Args)]
pub(crate) struct List {
    /// How it is shown.
    #[arg(long, short, value_enum, default_value_t)]
    output: output::Format,
}

/// What a profile of the file says, key by key.
#[derive(Debug, Default)]
pub(crate) struct Profile {
    name: String,
    values: [Option<String>; KEYS.len()],
}

impl Profile {
    /// The one that is named by the command line, the environment or the file, or the one that is called
    /// `default`, which need not be there.
    pub(crate) fn chosen() -> Result<Self, Fault> {
        let file = File::read()?;
        let name = file.chosen();
        file.profile(&name)
    }

    pub(crate) fn namespace(&self) -> String {
        self.value(3)
    }

    pub(crate) fn addresses(&self) -> Addresses {
        let list = |key| self.value(key).split(',').map(|one| one.trim().to_owned()).collect();
        Addresses { task: list(0), step: list(1), event: list(2) }
    }

    /// The addresses that hold, if no flag says otherwise.
    pub(crate) fn told(mut self) -> Addresses {
        for (value, (_, variable, _)) in self.values.iter_mut().zip(KEYS) {
            if let Some(told) = environment(variable) {
                *value = Some(told);
            }
        }
        self.addresses()
    }

    fn value(&self, key: usize) -> String {
        self.values[key].clone().unwrap_or_else(|| KEYS[key].2.to_owned())
    }
}

/// The file.
struct File {
    path: PathBuf,
    document: DocumentMut,
}

/// Where it is: `STEPWELL_CONFIG`, or under the folder for configurations.
fn path() -> Result<PathBuf, Fault> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(file) = variable("STEPWELL_CONFIG") {
        return Ok(file.into());
    }
    let folder = variable("XDG_CONFIG_HOME").map(PathBuf::from);
    let folder = folder.or_else(|| Some(PathBuf::from(variable("HOME")?).join(".config")));
    folder.map(|folder| folder.join("stepwell/config.toml")).ok_or_else(|| {
        Fault::usage("there is no place for the configuration")
            .because("neither STEPWELL_CONFIG, XDG_CONFIG_HOME nor HOME is set")
            .hint("STEPWELL_CONFIG=FILE")
    })
}

impl File {
    /// The file as it is; one that is not there is empty.
    fn read() -> Result<Self, Fault> {
        let path = path()?;
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == NotFound => String::new(),
            Err(error) => {
                let what = format!("cannot read the configuration {}", path.display());
                return Err(Fault::usage(what).because(error.to_string()));
            }
        };
        Self::parse(path, &text)
    }

    fn parse(path: PathBuf, text: &str) -> Result<Self, Fault> {
        let wrong = |why: String| {
            Fault::usage(format!("the configuration {} is wrong", path.display())).because(why)
        };
        let document: DocumentMut =
            text.parse().map_err(|error: toml_edit::TomlError| wrong(error.to_string()))?;
        for (key, item) in document.iter() {
            match key {
                "profile" if item.is_str() => {}
                "profile" => return Err(wrong("`profile` must be a text".into())),
                "profiles" => profiles(item).map_err(wrong)?,
                _ => {
                    let meant = suggestion(key, ["profile", "profiles"]);
                    return Err(wrong(format!("unknown key `{key}`{meant}")));
                }
            }
        }
        Ok(Self { path, document })
    }

    /// The name of the profile that holds.
    fn chosen(&self) -> String {
        let of_file = || self.document.get("profile").and_then(Item::as_str);
        NAMED.get().map(String::as_str).or_else(of_file).unwrap_or(DEFAULT).to_owned()
    }

    fn profiles(&self) -> Option<&dyn TableLike> {
        self.document.get("profiles").and_then(Item::as_table_like)
    }

    fn profile(&self, name: &str) -> Result<Profile, Fault> {
        let profiles = self.profiles();
        let found = profiles.and_then(|all| all.get(name)).and_then(Item::as_table_like);
        let Some(found) = found else {
            if name == DEFAULT {
                return Ok(Profile { name: name.to_owned(), ..Profile::default() });
            }
            let known: Vec<&str> =
                profiles.map(|all| all.iter().map(|(key, _)| key).collect()).unwrap_or_default();
            let meant = suggestion(name, known.iter().copied());
            let there = if known.is_empty() { "it has none".to_owned() } else { known.join(", ") };
            return Err(Fault::usage(format!("there is no profile {name:?}{meant}"))
                .because(format!("profiles of {}: {there}", self.path.display()))
                .hint(format!("stepwell config set task_address ADDRESS --profile {name}")));
        };
        let text = |key: &str| found.get(key).and_then(listed).filter(|text| !text.is_empty());
        Ok(Profile { name: name.to_owned(), values: KEYS.map(|(key, ..)| text(key)) })
    }

    fn set(&mut self, key: &str, text: &str) {
        if key == "profile" {
            self.document["profile"] = value(text);
            return;
        }
        let name = self.chosen();
        let profiles = self.document.entry("profiles").or_insert_with(|| {
            let mut profiles = Table::new();
            profiles.set_implicit(true);
            Item::Table(profiles)
        });
        let Some(profiles) = profiles.as_table_like_mut() else { return };
        let profile = profiles.entry(&name).or_insert_with(|| Item::Table(Table::new()));
        let Some(profile) = profile.as_table_like_mut() else { return };
        if text.is_empty() {
            profile.remove(key);
        } else {
            profile.insert(key, value(text));
        }
    }

    /// Written beside it first: whoever reads it meanwhile sees the old one or the new one. A link stays, and what
    /// it leads to is written.
    fn write(&self) -> Result<(), Fault> {
        let written = || -> std::io::Result<()> {
            let path = match std::fs::canonicalize(&self.path) {
                Err(error) if error.kind() == NotFound && !self.path.is_symlink() => {
                    self.path.clone()
                }
                path => path?,
            };
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder)?;
            }
            if path.exists() && !path.is_file() {
                return Err(std::io::Error::other("it is no file"));
            }
            let mut beside = path.clone().into_os_string();
            beside.push(format!(".{}", std::process::id()));
            std::fs::write(&beside, self.document.to_string())?;
            std::fs::rename(&beside, &path)
        };
        written().map_err(|error| {
            Fault::new(format!("cannot write {}", self.path.display())).because(error.to_string())
        })
    }
}

/// Says what is wrong with the profiles of a file.
fn profiles(item: &Item) -> Result<(), String> {
    let all = item.as_table_like().ok_or("`profiles` must be a table")?;
    for (name, profile) in all.iter() {
        let profile =
            profile.as_table_like().ok_or(format!("`profiles.{name}` must be a table"))?;
        for (key, item) in profile.iter() {
            let keys = KEYS.map(|(key, ..)| key);
            if !keys.contains(&key) {
                let meant = suggestion(key, keys);
                return Err(format!("unknown key `profiles.{name}.{key}`{meant}"));
            }
            if listed(item).is_none() {
                return Err(format!("`profiles.{name}.{key}` must be a text or a list of texts"));
            }
        }
    }
    Ok(())
}

/// A text, or texts with commas.
fn listed(item: &Item) -> Option<String> {
    match item.as_array() {
        Some(texts) => {
            let texts: Option<Vec<&str>> = texts.iter().map(toml_edit::Value::as_str).collect();
            texts.map(|texts| texts.join(","))
        }
        None => item.as_str().map(str::to_owned),
    }
}

/// A variable that is set, and not empty.
fn environment(variable: &str) -> Option<String> {
    std::env::var(variable).ok().filter(|value| !value.is_empty())
}

/// What holds for a key.
#[derive(Serialize)]
struct Holding {
    key: &'static str,
    value: String,
    from: String,
}

/// What holds for every key.
fn holding() -> Result<Vec<Holding>, Fault> {
    let profile = Profile::chosen()?;
    let from = match (NAMED.get(), profile.name == DEFAULT) {
        (Some(_), _) => "flag or environment",
        (None, true) => "default",
        (None, false) => "file",
    };
    let mut all =
        vec![Holding { key: "profile", value: profile.name.clone(), from: from.to_owned() }];
    for (i, (key, variable, default)) in KEYS.into_iter().enumerate() {
        let told = environment(variable);
        let (value, from) = match (told, &profile.values[i]) {
            (Some(told), _) => (told, variable.to_owned()),
            (None, Some(value)) => (value.clone(), format!("profile {}", profile.name)),
            (None, None) => (default.to_owned(), "default".to_owned()),
        };
        all.push(Holding { key, value, from });
    }
    Ok(all)
}

/// The key of this name.
fn known(key: &str) -> Result<(), Fault> {
    let keys = || KEYS.map(|(key, ..)| key).into_iter().chain(["profile"]);
    if keys().any(|known| known == key) {
        return Ok(());
    }
    let all = keys().collect::<Vec<_>>().join(", ");
    let meant = suggestion(key, keys());
    Err(Fault::usage(format!("unknown key `{key}`{meant}")).because(format!("keys are: {all}")))
}

impl Command {
    /// Waits for nobody.
    pub(crate) fn run(self) -> Result<ExitCode, Fault> {
        match self {
            Self::Get(Get { key }) => {
                known(&key)?;
                for holding in holding()?.into_iter().filter(|holding| holding.key == key) {
                    output::line(holding.value)?;
                }
            }
            Self::Set(Set { key, value }) => {
                known(&key)?;
                if value.trim() != value {
                    return Err(Fault::usage(format!("{value:?} begins or ends with a blank")));
                }
                let mut file = File::read()?;
                if key == "profile" {
                    if value.is_empty() {
                        return Err(Fault::usage("a profile has a name")
                            .hint(format!("stepwell config set profile {DEFAULT}")));
                    }
                    file.profile(&value)?;
                }
                file.set(&key, &value);
                file.write()?;
            }
            Self::List(List { output }) => {
                let all = holding()?;
                if output == output::Format::Name {
                    all.iter().try_for_each(|holding| output::line(holding.key))?;
                    return Ok(ExitCode::SUCCESS);
                }
                output.report(&all, || {
                    let mut table = output::table(&["KEY", "VALUE", "FROM"]);
                    for holding in &all {
                        table.add_row([holding.key, &holding.value, &holding.from]);
                    }
                    output::text(&table)
                })?;
            }
            Self::Path => output::line(path()?.display().to_string())?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Result<File, Fault> {
        File::parse("config.toml".into(), text)
    }

    #[test]
    fn a_profile_says_where_services_are_and_what_it_does_not_say_has_its_default() {
        let text = "
profile = 'prod'
[profiles.prod]
task_address = ['http://a:1', 'http://b:1']
namespace = 'shop'
";
        let file = file(text).ok().unwrap();
        assert_eq!(file.chosen(), "prod");
        let profile = file.profile("prod").ok().unwrap();
        assert_eq!(profile.addresses().task, ["http://a:1", "http://b:1"]);
        assert_eq!(profile.addresses().step, ["http://127.0.0.1:7102"]);
        assert_eq!(profile.namespace(), "shop");
        let default = file.profile("default").ok().unwrap();
        assert_eq!(default.addresses(), Addresses::default());
        assert_eq!(default.namespace(), "default");
    }

    #[test]
    fn what_is_wrong_in_the_file_is_told_with_what_was_meant() {
        for (text, wanted) in [
            ("profil = 'a'", "unknown key `profil`; did you mean `profile`?"),
            ("[profiles.a]\nnamspace = 'x'", "`profiles.a.namspace`; did you mean `namespace`?"),
            ("[profiles.a]\nnamespace = 7", "`profiles.a.namespace` must be a text"),
            ("profiles = 7", "`profiles` must be a table"),
            ("profile = ", "line 1, column"),
        ] {
            let told = file(text).err().unwrap().to_string();
            assert!(told.contains(wanted), "{text}: {told}");
        }
        let text = "[profiles.prod]\nnamespace = 'x'";
        let told = file(text).ok().unwrap().profile("prd").err().unwrap().to_string();
        assert!(told.contains("did you mean `prod`?"), "{told}");
    }

    #[test]
    fn a_link_to_the_file_stays_and_what_it_leads_to_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let (kept, link) = (folder.path().join("kept.toml"), folder.path().join("config.toml"));
        std::os::unix::fs::symlink("kept.toml", &link).unwrap();
        let mut file = File::parse(link.clone(), "").ok().unwrap();
        file.set("namespace", "shop");
        let told = file.write().err().unwrap().to_string();
        assert!(told.contains("cannot write"), "a link that leads nowhere: {told}");
        std::fs::write(&kept, "# mine\n").unwrap();
        file.write().ok().unwrap();
        assert!(link.is_symlink() && !kept.is_symlink());
        assert!(std::fs::read_to_string(&kept).unwrap().contains("namespace = \"shop\""));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
        let socket = folder.path().join("socket");
        let _bound = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let told = File::parse(socket, "").ok().unwrap().write().err().unwrap().to_string();
        assert!(told.contains("it is no file"), "{told}");
    }

    #[test]
    fn what_is_set_is_read_again_and_comments_stay() {
        let mut file = file("# mine\n[profiles.default]\nnamespace = 'a' # why\n").ok().unwrap();
        file.set("task_address", "http://c:1,http://d:1");
        file.set("namespace", "");
        let text = file.document.to_string();
        assert!(text.starts_with("# mine\n"), "{text}");
        let profile = self::file(&text).ok().unwrap().profile("default").ok().unwrap();
        assert_eq!(profile.addresses().task, ["http://c:1", "http://d:1"]);
        assert_eq!(profile.namespace(), "default");
    }
}
