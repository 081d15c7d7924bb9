//! Who is connected, and telling one to stop: each RPC is parsed, carried out and answered here.

use stepwell_proto::{
    id::parse_executor_id,
    page,
    refusal::Refusal,
    v1::{
        DrainExecutorRequest, DrainExecutorResponse, ErrorReason, ListExecutorsRequest,
        ListExecutorsResponse, ListHandlersRequest, ListHandlersResponse,
    },
};
use stepwell_store::{Note, Offering, Store};

use crate::offer::{NAME_RULE, is_name};

const PAGE_MAX: i32 = 1000;

/// The RPCs about executors and handlers.
#[derive(Clone)]
pub(crate) struct Executors(Store);

impl Executors {
    pub(crate) fn new(store: Store) -> Self {
        Self(store)
    }

    pub(crate) async fn list(
        &self,
        request: ListExecutorsRequest,
    ) -> Result<ListExecutorsResponse, Refusal> {
        let mut faults = Vec::new();
        let wanted = offering(request.namespace, request.handler, &mut faults);
        let max = page(request.page_size, &mut faults);
        let after = match request.page_token.as_str() {
            "" => 0,
            token => parse_executor_id(token).unwrap_or_else(|| strange(&mut faults)),
        };
        if !faults.is_empty() {
            return Err(Refusal::fields(faults));
        }
        let page = self.0.executors(&wanted, after, max).await?;
        let last = page.items.last().filter(|_| page.more);
        let next_page_token = last.map(|last| last.executor_id.clone()).unwrap_or_default();
        Ok(ListExecutorsResponse { executors: page.items, next_page_token })
    }

    pub(crate) async fn list_handlers(
        &self,
        request: ListHandlersRequest,
    ) -> Result<ListHandlersResponse, Refusal> {
        let mut faults = Vec::new();
        let wanted = offering(request.namespace, request.handler, &mut faults);
        let max = page(request.page_size, &mut faults);
        // Neither has a colon.
        let after = request.page_token.split_once(':');
        let after = after.filter(|(namespace, name)| is_name(namespace) && is_name(name));
        let after = match after {
            None if !request.page_token.is_empty() => strange(&mut faults),
            after => after.unwrap_or_default(),
        };
        if !faults.is_empty() {
            return Err(Refusal::fields(faults));
        }
        let page = self.0.handlers(&wanted, after, max).await?;
        let last = page.items.last().filter(|_| page.more);
        let next_page_token =
            last.map(|last| format!("{}:{}", last.namespace, last.name)).unwrap_or_default();
        Ok(ListHandlersResponse { handlers: page.items, next_page_token })
    }

    pub(crate) async fn drain(
        &self,
        request: DrainExecutorRequest,
    ) -> Result<DrainExecutorResponse, Refusal> {
        let DrainExecutorRequest { executor_id, reason, requested_by } = request;
        let session = parse_executor_id(&executor_id).ok_or_else(|| {
            Refusal::field("executor_id", "must be an id as ListExecutors has it, such as `1-2a`")
        })?;
        let Note { by, reason, .. } =
            Note::read(reason, "requested_by", requested_by, String::new())?;
        let told = self.0.stop_executor(session, &reason).await?;
        let already_in_state = told.ok_or_else(|| {
            let message = format!("no executor {executor_id} is connected");
            Refusal::new(ErrorReason::ExecutorNotFound, message).with("executor_id", &executor_id)
        })?;
        if !already_in_state {
            tracing::info!(session, requested_by = ?by, ?reason, "executor told to stop");
        }
        Ok(DrainExecutorResponse { executor: self.0.executor(session).await?, already_in_state })
    }
}

type Faults = Vec<(String, String)>;

fn offering(namespace: String, handler: String, faults: &mut Faults) -> Offering {
    for (path, name) in [("namespace", &namespace), ("handler", &handler)] {
        if !name.is_empty() && !is_name(name) {
            faults.push((path.to_owned(), NAME_RULE.to_owned()));
        }
    }
    Offering { namespace, handler }
}

fn page(asked: i32, faults: &mut Faults) -> i32 {
    page::size(asked, PAGE_MAX).unwrap_or_else(|what| {
        faults.push(("page_size".to_owned(), what));
        asked
    })
}

fn strange<T: Default>(faults: &mut Faults) -> T {
    faults.push(("page_token".to_owned(), "must be the `next_page_token` of a page".to_owned()));
    T::default()
}
