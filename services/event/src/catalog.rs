//! The catalog, asked: which types of events there are, and what each looks like. Pure.

use stepwell_proto::{
    catalog::{self, EVENTS, elsewhere, event_type},
    page,
    refusal::Refusal,
    v1::{
        ErrorReason, EventCategory, EventType, GetEventTypeResponse, ListEventTypesRequest,
        ListEventTypesResponse,
    },
};
use stepwell_store::{EventTypeRow, timestamp};

/// Of `Event.custom_event`.
const CUSTOM_NUMBER: i32 = 100;
const PAGE_MAX: i32 = 1_000;
const PREFIX_BYTES_MAX: usize = 64;
const SEARCH_BYTES_MAX: usize = 128;
/// Of a name that is refused, so many characters are repeated.
const SHOWN_MAX: usize = 100;
/// A name that is this much like another is what was meant.
const ALIKE: f64 = 0.8;

/// Custom types have their places after all of ours: this one and their key.
const CUSTOM_AFTER: i64 = 1_000;

/// A page of the types that fit, as far as it is of ours.
pub(crate) struct Page {
    list: u64,
    size: usize,
    after: i64,
    wants_custom: bool,
    event_types: Vec<EventType>,
}

impl Page {
    /// Begins with the types of ours that fit.
    pub(crate) fn begin(request: &ListEventTypesRequest) -> Result<Self, Refusal> {
        let size = check(request)?;
        let list = list_of(request);
        let after = page::place(&request.page_token, list)?.unwrap_or_default();
        let search = request.search.to_lowercase();
        let fitting = EVENTS.iter().filter(|of_type| {
            request.namespace.is_empty()
                && i64::from(of_type.number) > after
                && (request.category == 0 || request.category == i32::from(of_type.category))
                && of_type.name.starts_with(&request.prefix)
                && (of_type.name.contains(&search) || of_type.doc.to_lowercase().contains(&search))
        });
        let event_types = fitting.take(size + 1).map(described).collect();
        let category = request.category;
        let wants_custom = category == 0 || category == i32::from(EventCategory::Custom);
        Ok(Self { list, size, after, wants_custom, event_types })
    }

    /// Custom types are wanted after this key, so many; none: the page is full.
    pub(crate) fn custom(&self) -> Option<(i32, i64)> {
        let room = (self.size + 1).checked_sub(self.event_types.len()).filter(|room| *room > 0)?;
        let after = i32::try_from((self.after - CUSTOM_AFTER).max(0)).unwrap_or(i32::MAX);
        self.wants_custom.then_some((after, i64::try_from(room).unwrap_or(i64::MAX)))
    }

    /// Ends with custom types.
    pub(crate) fn end(self, custom: Vec<EventTypeRow>) -> ListEventTypesResponse {
        let places = self.event_types.iter().map(|of_type| i64::from(of_type.number));
        let mut places: Vec<i64> = places.collect();
        places.extend(custom.iter().map(|row| CUSTOM_AFTER + i64::from(row.id)));
        let mut event_types = self.event_types;
        event_types.extend(custom.into_iter().map(registered));
        let more = event_types.len() > self.size;
        event_types.truncate(self.size);
        let last = places.get(self.size.saturating_sub(1)).filter(|_| more);
        let next_page_token = page::token(self.list, last.copied());
        ListEventTypesResponse { event_types, next_page_token }
    }
}

/// A type of ours; none: there is none of this name.
pub(crate) fn get(name: &str) -> Option<GetEventTypeResponse> {
    let event_type = Some(described(event_type(name)?));
    Some(GetEventTypeResponse { event_type })
}

/// Refuses a name or pattern that means no event: says which one was meant, or what stands for it.
pub(crate) fn unknown(path: String, name: &str) -> Refusal {
    unknown_among(path, name, &[])
}

/// The same where these names are known too.
pub(crate) fn unknown_among(path: String, name: &str, custom: &[String]) -> Refusal {
    let shown: String = name.chars().take(SHOWN_MAX).collect();
    let closest = EVENTS
        .iter()
        .map(|e| e.name)
        .chain(custom.iter().map(String::as_str))
        .map(|known| (strsim::jaro_winkler(known, &shown), known))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(alike, _)| *alike >= ALIKE && elsewhere(name).is_none())
        .map(|(_, name)| name);
    let message = match (elsewhere(name), closest) {
        (Some(there), _) => format!("{shown:?} is no event here. {}", there.here),
        (None, Some(meant)) => format!("no event is called {shown:?}; did you mean {meant:?}?"),
        (None, None) => format!("no event is called {shown:?}"),
    };
    let refusal = Refusal::new(ErrorReason::EventUnknown, &message)
        .with("name", shown)
        .with_violations(vec![(path, message)]);
    match closest {
        Some(name) => refusal.with("suggestion", name),
        None => refusal,
    }
}

/// How many types the page has at most, if what is asked can be.
fn check(request: &ListEventTypesRequest) -> Result<usize, Refusal> {
    let mut faults = Vec::new();
    if EventCategory::try_from(request.category).is_err() {
        faults.push(("category".to_owned(), "is no category".to_owned()));
    }
    let texts = [
        ("namespace", &request.namespace, PREFIX_BYTES_MAX),
        ("prefix", &request.prefix, PREFIX_BYTES_MAX),
        ("search", &request.search, SEARCH_BYTES_MAX),
    ];
    let is_strange = |text: &str, max| text.len() > max || text.contains('\0');
    for (path, _, max) in texts.into_iter().filter(|(_, text, max)| is_strange(text, *max)) {
        faults.push((path.to_owned(), format!("at most {max} bytes, without NUL")));
    }
    match page::size(request.page_size, PAGE_MAX) {
        Ok(size) if faults.is_empty() => Ok(usize::try_from(size).unwrap_or_default()),
        Ok(_) => Err(Refusal::fields(faults)),
        Err(what) => {
            faults.push(("page_size".to_owned(), what));
            Err(Refusal::fields(faults))
        }
    }
}

/// What the list is, as its page tokens name it.
fn list_of(request: &ListEventTypesRequest) -> u64 {
    let ListEventTypesRequest { category, prefix, search, namespace, .. } = request;
    page::list("event types", format!("{category}\0{prefix}\0{search}\0{namespace}"))
}

fn described(of_type: &catalog::EventType) -> EventType {
    let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
    let edge = of_type.edge.as_ref();
    EventType {
        name: of_type.name.to_owned(),
        number: i32::try_from(of_type.number).unwrap_or(i32::MAX),
        category: of_type.category.into(),
        description: of_type.doc.to_owned(),
        message: of_type.message.to_owned(),
        schema: of_type.schema.to_owned(),
        example: of_type.example.to_owned(),
        emitters: owned(of_type.emitters),
        derived_from: owned(of_type.derived_from),
        entity: edge.map_or(0, |edge| edge.entity.into()),
        from_states: edge.map(|e| e.from.iter().map(|&s| s.into()).collect()).unwrap_or_default(),
        to_state: edge.and_then(|edge| edge.to).map_or(0, Into::into),
        since: of_type.since.to_owned(),
        ..EventType::default()
    }
}

/// A custom type as it goes over the wire.
pub(crate) fn registered(row: EventTypeRow) -> EventType {
    EventType {
        name: row.name,
        number: CUSTOM_NUMBER,
        category: EventCategory::Custom.into(),
        description: row.description,
        message: "CustomEvent".into(),
        schema: row.schema,
        example: row.example,
        emitters: vec!["step-service".into(), "event-service".into()],
        namespace: row.namespace,
        version: row.version,
        create_time: Some(timestamp(row.created_at)),
        ..EventType::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(request: &ListEventTypesRequest) -> Result<ListEventTypesResponse, Refusal> {
        Ok(Page::begin(request)?.end(Vec::new()))
    }

    fn names(request: ListEventTypesRequest) -> Vec<String> {
        list(&request).unwrap().event_types.into_iter().map(|t| t.name).collect()
    }

    #[test]
    fn what_is_searched_for_is_found_in_names_and_descriptions_in_any_case() {
        let search = |text: &str| {
            names(ListEventTypesRequest { search: text.into(), ..ListEventTypesRequest::default() })
        };
        assert!(search("BackOff").contains(&"observability.step.backoff".to_owned()));
        assert!(search("A PERSON DECLARED").contains(&"step.resolved_manually".to_owned()));
        assert!(search("no such words").is_empty());
        assert_eq!(search("").len(), EVENTS.len());
    }

    #[test]
    fn types_are_chosen_by_category_and_prefix_together() {
        let chosen = |category: EventCategory, prefix: &str| {
            names(ListEventTypesRequest {
                category: category.into(),
                prefix: prefix.into(),
                ..ListEventTypesRequest::default()
            })
        };
        let tasks = chosen(EventCategory::Task, "");
        assert!(tasks.len() >= 10 && tasks.iter().all(|name| name.starts_with("task.")));
        assert!(chosen(EventCategory::Unspecified, "observability.step.").len() >= 3);
        assert!(chosen(EventCategory::Task, "step.").is_empty());
    }

    #[test]
    fn pages_have_each_type_once_in_the_order_of_numbers() {
        let mut request =
            ListEventTypesRequest { page_size: 4, ..ListEventTypesRequest::default() };
        let mut numbers = Vec::new();
        loop {
            let page = list(&request).unwrap();
            assert!((1..=4).contains(&page.event_types.len()));
            numbers.extend(page.event_types.iter().map(|of_type| of_type.number));
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                break;
            }
        }
        assert_eq!(numbers.len(), EVENTS.len());
        assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
        // A page that is just full is the last.
        let n = i32::try_from(EVENTS.len()).unwrap();
        let whole = ListEventTypesRequest { page_size: n, ..ListEventTypesRequest::default() };
        assert_eq!(list(&whole).unwrap().next_page_token, "");
    }

    #[test]
    fn custom_types_come_after_ours_a_page_may_have_both_and_each_comes_once() {
        let row = |id| EventTypeRow {
            id,
            namespace: "shop".into(),
            name: format!("payment.x{id}"),
            version: 1,
            schema: String::new(),
            description: String::new(),
            example: String::new(),
            created_at: std::time::SystemTime::UNIX_EPOCH.into(),
        };
        let size = i32::try_from(EVENTS.len()).unwrap() + 1;
        let mut request =
            ListEventTypesRequest { page_size: size, ..ListEventTypesRequest::default() };
        let page = Page::begin(&request).unwrap();
        assert_eq!(page.custom(), Some((0, 2)), "one more than there is room for");
        let first = page.end(vec![row(7), row(9)]);
        assert_eq!(first.event_types.len(), EVENTS.len() + 1);
        assert_eq!(first.event_types.last().unwrap().name, "payment.x7");
        request.page_token = first.next_page_token;
        let page = Page::begin(&request).unwrap();
        assert_eq!(page.custom().unwrap().0, 7);
        let second = page.end(vec![row(9)]);
        assert_eq!((second.event_types.len(), second.next_page_token.as_str()), (1, ""));
        let only = ListEventTypesRequest { namespace: "shop".into(), ..Default::default() };
        let page = Page::begin(&only).unwrap();
        assert!(page.event_types.is_empty() && page.custom().is_some());
        let steps = EventCategory::Step.into();
        let ours = ListEventTypesRequest { category: steps, ..Default::default() };
        assert_eq!(Page::begin(&ours).unwrap().custom(), None);
    }

    #[test]
    fn every_fault_of_a_question_about_types_is_named() {
        let refusal = list(&ListEventTypesRequest {
            category: 99,
            prefix: "x".repeat(65),
            search: "x".repeat(129),
            page_size: -1,
            ..ListEventTypesRequest::default()
        })
        .unwrap_err();
        let paths: Vec<_> = refusal.violations.into_iter().map(|v| v.0).collect();
        assert_eq!(paths, ["category", "prefix", "search", "page_size"]);
        let first = ListEventTypesRequest { page_size: 1, ..ListEventTypesRequest::default() };
        let page_token = list(&first).unwrap().next_page_token;
        for wrong in [
            ListEventTypesRequest { page_token: "x".into(), ..first.clone() },
            ListEventTypesRequest { page_token, search: "step".into(), ..first },
        ] {
            assert_eq!(list(&wrong).unwrap_err().reason, ErrorReason::PageTokenInvalid);
        }
    }

    #[test]
    fn whoever_asks_for_a_name_from_elsewhere_is_told_what_stands_for_it() {
        for (name, said) in [
            ("step.before_handle", "Executor::observer"),
            ("task.before_transition", "nothing is seen before its commit"),
            ("step.complete", "did you mean \"step.completed\"?"),
        ] {
            assert_eq!(get(name), None);
            let refusal = unknown("name".into(), name);
            assert_eq!(refusal.reason, ErrorReason::EventUnknown);
            assert_eq!(refusal.violations[0].0, "name");
            assert!(refusal.violations[0].1.contains(said), "{refusal:?}");
        }
        let known = get("step.completed").unwrap();
        assert_eq!(known.event_type.unwrap().message, "StepCompleted");
    }
}
