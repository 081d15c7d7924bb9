//! An order of a cart: two HTTP calls without code fetch the cart and the products, handlers do the rest. The
//! definition differs by environment in what is called.

mod handlers;
mod price;
mod servers;

use crate::example::Example;

/// The example.
pub const EXAMPLE: Example = Example {
    name: "cart",
    about: "HTTP calls without code, environments of a definition",
    definitions: &[(NAMESPACE, include_str!("../../cart/definition.yaml"))],
    of: (NAMESPACE, "cart_order"),
    inputs: include_str!("../../cart/inputs.json"),
    servers: servers::routes,
    executors: handlers::executors,
};

const NAMESPACE: &str = "api";
