//! Registering definitions and finding them.

use stepwell_proto::v1::{
    Definition, DefinitionSummary, ErrorReason, GetDefinitionGraphRequest, GetDefinitionRequest,
    ListDefinitionsRequest, ListNamespacesRequest, NamespaceSummary, RegisterDefinitionRequest,
    register_definition_request::Source,
};

use crate::{PAIR, World, answer, yaml_request};

fn get(name: &str, version: &str) -> GetDefinitionRequest {
    GetDefinitionRequest { name: name.into(), version: version.into(), ..Default::default() }
}

#[tokio::test]
async fn a_version_is_registered_once_and_never_changes() {
    let world = World::new().await;
    let first = answer(world.client().register_definition(yaml_request(PAIR)).await).unwrap();
    assert!(!first.already_existed);
    let definition = first.definition.unwrap();
    assert!(definition.create_time.is_some());

    // The same as a message, with its output-only fields: still the same.
    let again = RegisterDefinitionRequest { source: Some(Source::Definition(definition.clone())) };
    let again = answer(world.client().register_definition(again).await).unwrap();
    assert!(again.already_existed);
    assert_eq!(again.definition.as_ref(), Some(&definition));

    let changed = PAIR.replace("first", "erst");
    let refused = answer(world.client().register_definition(yaml_request(&changed)).await);
    assert_eq!(refused.unwrap_err().reason, ErrorReason::DefinitionChanged);
    let stored = answer(world.client().get_definition(get("pair", "1.0.0")).await).unwrap();
    assert_eq!(stored.definition, Some(definition));
}

#[tokio::test]
async fn many_who_register_the_same_at_once_agree() {
    let world = World::new().await;
    let calls = (0..20).map(|_| {
        let mut client = world.client();
        async move { answer(client.register_definition(yaml_request(PAIR)).await).unwrap() }
    });
    let answers = futures::future::join_all(calls).await;
    assert_eq!(answers.iter().filter(|a| !a.already_existed).count(), 1);
    let first = answers[0].definition.as_ref().unwrap();
    assert!(answers.iter().all(|a| a.definition.as_ref() == Some(first)));
}

#[tokio::test]
async fn the_latest_is_the_highest_version() {
    let world = World::new().await;
    for version in ["1.10.0", "1.9.0", "1.2.30"] {
        world.register(&PAIR.replace("1.0.0", version)).await;
    }
    let latest = answer(world.client().get_definition(get("pair", "")).await).unwrap();
    assert_eq!(latest.definition.unwrap().version, "1.10.0");
    for (name, version) in [("pair", "9.9.9"), ("unknown", "")] {
        let refusal = answer(world.client().get_definition(get(name, version)).await).unwrap_err();
        assert_eq!(refusal.reason, ErrorReason::DefinitionNotFound);
        assert_eq!(refusal.metadata["definition"], name);
    }
    let refusal = answer(world.client().get_definition(get("a\0b", "one")).await).unwrap_err();
    let paths: Vec<_> = refusal.violations.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(paths, ["name", "version"]);
}

#[tokio::test]
async fn a_wrong_definition_is_refused_and_not_stored() {
    let world = World::new().await;
    let circle = PAIR.replace("- name: first", "- name: first\n    depends_on: [second]");
    let refusal = answer(world.client().register_definition(yaml_request(&circle)).await);
    let refusal = refusal.unwrap_err();
    assert_eq!(refusal.reason, ErrorReason::InvalidDefinition);
    assert!(refusal.message.contains("first → second → first"), "{}", refusal.message);
    assert!(refusal.violations[0].0.contains("depends_on[0] at "), "{:?}", refusal.violations);
    let found = answer(world.client().get_definition(get("pair", "")).await);
    assert_eq!(found.unwrap_err().reason, ErrorReason::DefinitionNotFound);

    for source in [None, Some(Source::Definition(Definition::default()))] {
        let request = RegisterDefinitionRequest { source };
        assert!(answer(world.client().register_definition(request).await).is_err());
    }
}

async fn list(world: &World, mut request: ListDefinitionsRequest) -> Vec<(String, bool)> {
    let mut all = Vec::new();
    loop {
        let page = answer(world.client().list_definitions(request.clone()).await).unwrap();
        let size = usize::try_from(request.page_size).unwrap();
        assert!(size == 0 || page.definitions.len() <= size);
        let told = |d: DefinitionSummary| {
            assert_eq!(
                (d.content_hash.len(), d.paused, d.create_time.is_some()),
                (64, false, true)
            );
            assert_eq!(d.total_steps, 2);
            (format!("{}/{} {}", d.namespace, d.name, d.version), d.latest)
        };
        all.extend(page.definitions.into_iter().map(told));
        if page.next_page_token.is_empty() {
            return all;
        }
        request.page_token = page.next_page_token;
    }
}

#[tokio::test]
async fn definitions_and_namespaces_are_listed_page_by_page_and_versions_by_number() {
    let world = World::new().await;
    for (namespace, name, version) in [
        ("shop", "pair", "1.10.0"),
        ("shop", "pair", "1.9.0"),
        ("shop", "other", "0.1.0"),
        ("bank", "pair", "2.0.0"),
        ("bank", "pair", "10.0.0"),
    ] {
        let text = PAIR
            .replace("1.0.0", version)
            .replace("name: pair", &format!("namespace: {namespace}\nname: {name}"));
        world.register(&text).await;
    }
    let latest =
        [("bank/pair 10.0.0", true), ("shop/other 0.1.0", true), ("shop/pair 1.10.0", true)];
    let all = [
        ("bank/pair 2.0.0", false),
        ("bank/pair 10.0.0", true),
        ("shop/other 0.1.0", true),
        ("shop/pair 1.9.0", false),
        ("shop/pair 1.10.0", true),
    ];
    let owned = |of: &[(&str, bool)]| -> Vec<(String, bool)> {
        of.iter().map(|(text, latest)| ((*text).to_owned(), *latest)).collect()
    };
    for page_size in [0, 1, 2, 3, 1000] {
        let of =
            |all_versions| ListDefinitionsRequest { page_size, all_versions, ..Default::default() };
        assert_eq!(list(&world, of(false)).await, owned(&latest));
        assert_eq!(list(&world, of(true)).await, owned(&all));
        let shop = ListDefinitionsRequest { namespace: "shop".into(), ..of(true) };
        assert_eq!(list(&world, shop).await, owned(&all[2..]));
        let pair = ListDefinitionsRequest { name: "pair".into(), ..of(false) };
        assert_eq!(list(&world, pair).await, owned(&[latest[0], latest[2]]));
    }
    let mut request = ListNamespacesRequest { page_size: 1, page_token: String::new() };
    for (namespace, definitions, versions) in [("bank", 1, 2), ("shop", 2, 3)] {
        let page = answer(world.client().list_namespaces(request.clone()).await).unwrap();
        let summary = NamespaceSummary { namespace: namespace.into(), definitions, versions };
        assert_eq!(page.namespaces, [summary]);
        request.page_token = page.next_page_token;
    }
    assert_eq!(request.page_token, "");
}

#[tokio::test]
async fn a_wrong_question_about_definitions_is_refused_with_its_field() {
    let world = World::new().await;
    let base = ListDefinitionsRequest::default;
    for (request, path) in [
        (ListDefinitionsRequest { namespace: "a b".into(), ..base() }, "namespace"),
        (ListDefinitionsRequest { name: "a:b".into(), ..base() }, "name"),
        (ListDefinitionsRequest { page_size: 1001, ..base() }, "page_size"),
        (ListDefinitionsRequest { page_token: "a:b".into(), ..base() }, "page_token"),
        (ListDefinitionsRequest { page_token: "a:b:1.0.0:".into(), ..base() }, "page_token"),
        (ListDefinitionsRequest { page_token: "a:b:1.0".into(), ..base() }, "page_token"),
    ] {
        let refusal = answer(world.client().list_definitions(request).await).unwrap_err();
        assert_eq!(refusal.violations[0].0, path);
    }
    for request in [
        ListNamespacesRequest { page_size: -1, page_token: String::new() },
        ListNamespacesRequest { page_size: 0, page_token: "a b".into() },
    ] {
        assert!(answer(world.client().list_namespaces(request).await).is_err());
    }
    let request = GetDefinitionGraphRequest { name: "none".into(), ..Default::default() };
    let refusal = answer(world.client().get_definition_graph(request).await).unwrap_err();
    assert_eq!(refusal.reason, ErrorReason::DefinitionNotFound);
}

#[tokio::test]
async fn a_graph_has_levels_roots_leaves_and_a_longest_path() {
    let world = World::new().await;
    // Two roots, one leaf, four levels.
    world
        .register(
            "name: cart\nsteps:\n  - name: publish\n    depends_on: [order]\n  - name: cart\n  - {name: products, handler: get}
  - name: check\n    depends_on: [products, cart]\n  - name: order\n    depends_on: [check]\n",
        )
        .await;
    let request = GetDefinitionGraphRequest { name: "cart".into(), ..Default::default() };
    let graph = answer(world.client().get_definition_graph(request).await).unwrap().graph.unwrap();
    assert_eq!(
        (graph.namespace.as_str(), graph.name.as_str(), graph.version.as_str()),
        ("default", "cart", "0.1.0")
    );
    let levels: Vec<&[i32]> = graph.levels.iter().map(|level| level.steps.as_slice()).collect();
    assert_eq!(levels, [&[1, 2][..], &[3], &[4], &[0]]);
    assert_eq!(
        (graph.roots, graph.leaves, graph.longest_path),
        (vec![1, 2], vec![0], vec![1, 3, 4, 0])
    );
    let edges: Vec<(i32, i32)> = graph.edges.iter().map(|edge| (edge.parent, edge.child)).collect();
    assert_eq!(edges, [(4, 0), (1, 3), (2, 3), (3, 4)]);
    let check = &graph.steps[3];
    assert_eq!((check.name.as_str(), check.level, check.distance), ("check", 1, 1));
    assert_eq!((check.parents.as_slice(), check.children.as_slice()), (&[1, 2][..], &[4][..]));
    assert_eq!(graph.steps[2].handler, "get");
}

#[tokio::test]
async fn text_that_leaves_something_open_and_a_version_before_a_release_are_refused() {
    let world = World::new().await;
    for (text, path) in [
        (
            PAIR.replace("- name: first", "- name: first\n    description: ${URL}"),
            "steps[0].description at 6:18",
        ),
        (format!("{PAIR}variables: {{URL: {{default: x}}}}\n"), "variables at 8:1"),
        (format!("{PAIR}environments: {{test: {{}}}}\n"), "environments at 8:1"),
        (PAIR.replace("1.0.0", "1.0.0-rc.1"), "version at 2:10"),
    ] {
        let refusal =
            answer(world.client().register_definition(yaml_request(&text)).await).unwrap_err();
        assert_eq!(refusal.reason, ErrorReason::InvalidDefinition);
        assert_eq!(refusal.violations[0].0, path, "{:?}", refusal.violations);
    }
    let found = answer(world.client().get_definition(get("pair", "")).await);
    assert_eq!(found.unwrap_err().reason, ErrorReason::DefinitionNotFound);
}
