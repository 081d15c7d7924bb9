//! Registering definitions and finding them.

use stepwell_proto::v1::{
    Definition, ErrorReason, GetDefinitionRequest, RegisterDefinitionRequest,
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
