//! Mails about the orders of the checkout, printed: `order-notifications --from earliest`.

use std::{error::Error, io::stdout};

use clap::Parser;
use stepwell_examples::{
    checkout,
    subscribers::{Options, OrderNotifications, run},
};

/// Prints a mail for every order of the checkout that is written, and for every one that fails.
#[derive(Parser)]
struct Program {
    /// Who in the shop is told of orders that fail
    #[arg(long, default_value = "orders@shop.example")]
    shop: String,
    #[command(flatten)]
    options: Options,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let Program { shop, options } = Program::parse();
    let mails = OrderNotifications::new(shop, stdout());
    let tally = run(&options, &Options::client()?, mails, &[checkout::NAME]).await?;
    eprintln!("{} events, {} failed", tally.handled, tally.failed);
    Ok(())
}
