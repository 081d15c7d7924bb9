//! Registration of a user at several services: the account, then billing and preferences at once, the welcome,
//! and the account's status. Each handler says what its service means by 409; other statuses mean the same for
//! all of them ([`crate::caller`]).

mod handlers;
mod servers;

use crate::example::Example;

/// The example.
pub const EXAMPLE: Example = Example {
    name: "registration",
    about: "a diamond of HTTP calls, and what their statuses mean",
    definitions: &[(NAMESPACE, include_str!("../../registration/definition.yaml"))],
    of: (NAMESPACE, "user_registration"),
    inputs: include_str!("../../registration/inputs.json"),
    servers: servers::routes,
    executors: handlers::executors,
};

const NAMESPACE: &str = "accounts";
