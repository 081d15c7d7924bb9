//! Where the services are.

/// Addresses of the three services, each `http://host:port`. Several of one service: unary calls
/// go to them in turn, streams to one of them and to the next when that one fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Of task-services. Default `http://127.0.0.1:7101`.
    pub task: Vec<String>,
    /// Of step-services. Default `http://127.0.0.1:7102`.
    pub step: Vec<String>,
    /// Of event-services. Default `http://127.0.0.1:7103`.
    pub event: Vec<String>,
}

impl Default for Addresses {
    fn default() -> Self {
        Self {
            task: vec!["http://127.0.0.1:7101".into()],
            step: vec!["http://127.0.0.1:7102".into()],
            event: vec!["http://127.0.0.1:7103".into()],
        }
    }
}

impl Addresses {
    /// From `STEPWELL_TASK_ADDRESS`, `STEPWELL_STEP_ADDRESS` and `STEPWELL_EVENT_ADDRESS`, each a
    /// list with commas. What is unset or empty has its default.
    pub fn from_env() -> Self {
        Self::read(|name| std::env::var(name).ok())
    }

    fn read(variable: impl Fn(&str) -> Option<String>) -> Self {
        let list = |name: &str, default: Vec<String>| {
            let text = variable(name).unwrap_or_default();
            let addresses = text.split(',').map(str::trim).filter(|a| !a.is_empty());
            let addresses: Vec<String> = addresses.map(str::to_owned).collect();
            if addresses.is_empty() { default } else { addresses }
        };
        let default = Self::default();
        Self {
            task: list("STEPWELL_TASK_ADDRESS", default.task),
            step: list("STEPWELL_STEP_ADDRESS", default.step),
            event: list("STEPWELL_EVENT_ADDRESS", default.event),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_lists_addresses_with_commas() {
        let addresses = Addresses::read(|name| match name {
            "STEPWELL_TASK_ADDRESS" => Some("http://a:1, http://b:2,".into()),
            "STEPWELL_STEP_ADDRESS" => Some(" ".into()),
            _ => None,
        });
        assert_eq!(addresses.task, ["http://a:1", "http://b:2"]);
        assert_eq!(addresses.step, Addresses::default().step);
        assert_eq!(addresses.event, Addresses::default().event);
    }
}
