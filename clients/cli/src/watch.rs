//! `--watch`: what a command shows, shown again whenever something of it has happened. The event stream says
//! when; nothing is asked for in vain.

use std::{io::IsTerminal, process::ExitCode, time::Duration};

use clap::Args;
use futures::FutureExt;
use stepwell_client::Client;
use stepwell_proto::v1::{EventFilter, Latest, SubscribeRequest, subscribe_request::Start};

use crate::{example::told_to_stop, fault::Fault, output};

/// Not more often than this, however much happens.
const PAUSE: Duration = Duration::from_millis(100);

/// Whether a command goes on.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Watch {
    /// Show it again whenever it has changed, until interrupted.
    #[arg(long, short = 'w')]
    watch: bool,
}

impl Watch {
    /// Shows something once, or again after each event that fits the filter.
    pub(crate) async fn show(
        self,
        client: &Client,
        filter: EventFilter,
        show: impl AsyncFn() -> Result<(), Fault>,
    ) -> Result<ExitCode, Fault> {
        if !self.watch {
            show().await?;
            return Ok(ExitCode::SUCCESS);
        }
        // The stream is there first, so that nothing between it and the first look is missed.
        let wanted = SubscribeRequest {
            start: Some(Start::Latest(Latest {})),
            filter: Some(filter),
            metadata_only: true,
            with_snapshot: false,
        };
        let mut feed = client.subscribe(wanted).await?;
        let watching = async {
            loop {
                if std::io::stdout().is_terminal() {
                    output::clear()?;
                }
                show().await?;
                loop {
                    let Some(delivery) = feed.next().await else { return Ok(()) };
                    if !delivery?.events.is_empty() {
                        break;
                    }
                }
                tokio::time::sleep(PAUSE).await;
                // What has come meanwhile is in the next look.
                while let Some(Some(more)) = feed.next().now_or_never() {
                    more?;
                }
            }
        };
        tokio::select! {
            ended = watching => ended.map(|()| ExitCode::SUCCESS),
            () = told_to_stop() => Ok(ExitCode::SUCCESS),
        }
    }
}
