//! Where calls may go, what they take along, and that they end when they should.

use serde_json::json;
use stepwell_client::v1;
use stepwell_http::Settings;
use stepwell_tests::{World, check};

use crate::{
    define, executor, failure, only, run,
    server::{Does, Server, answer, json},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_go_only_where_they_may_and_so_do_redirects() {
    let world = World::start().await;
    let inside = Server::start(|_| json(200, r#""inside""#)).await;
    let port = inside.port;
    let outside = Server::start(move |asked| {
        let place = match asked.target.as_str() {
            "/by-address" => format!("http://127.0.0.1:{port}/"),
            "/by-name" => format!("http://localhost:{port}/"),
            "/by-number" => format!("http://2130706433:{port}/"),
            "/mapped" => format!("http://[::ffff:127.0.0.1]:{port}/"),
            "/metadata" => "http://169.254.169.254/latest/meta-data/".to_owned(),
            _ => "file:///etc/passwd".to_owned(),
        };
        answer(302, &[("location", &place)], "")
    })
    .await;

    // One server is named, and any public address is allowed.
    let running = executor(&world, only(&["*", &outside.host]));
    for (name, class) in [
        ("by-address", "HostNotAllowed"),
        ("by-name", "HostNotAllowed"),
        ("by-number", "HostNotAllowed"),
        ("mapped", "HostNotAllowed"),
        ("metadata", "HostNotAllowed"),
        ("file", "RedirectRefused"),
    ] {
        let config = json!({"url": outside.url(&format!("/{name}"))});
        let step = run(&world, name, config, &json!({})).await;
        assert_eq!((failure(&step).0, step.attempt), (class, 1), "{name}: {step:?}");
    }
    assert_eq!(outside.asked().len(), 6);
    running.stop().await;

    // Nobody is named: what is not public is refused, by its address or by what its name leads to.
    let running = executor(&world, Settings::default());
    for (name, host) in [("address", "127.0.0.1"), ("name", "localhost"), ("mapped2", "[::1]")] {
        let config = json!({"url": format!("http://{host}:{port}/")});
        let step = run(&world, name, config, &json!({})).await;
        assert_eq!((failure(&step).0, step.attempt), ("HostNotAllowed", 1), "{host}");
    }
    running.stop().await;

    // Another is named: nobody else may be called.
    let running = executor(&world, only(&[&inside.host]));
    let step = run(&world, "other", json!({"url": outside.url("/")}), &json!({})).await;
    assert_eq!(failure(&step), ("HostNotAllowed", "", "127.0.0.1 is not among the allowed hosts"));
    assert!(inside.asked().is_empty());
    let step = run(&world, "named", json!({"url": inside.url("/")}), &json!({})).await;
    assert_eq!(step.result, r#""inside""#);
    running.stop().await;
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redirect_to_another_host_takes_no_credentials_along() {
    let world = World::start().await;
    let other = Server::start(|_| json(200, "1")).await;
    let place = other.url("/landed");
    let server = Server::start(move |asked| match asked.target.as_str() {
        "/here" => answer(307, &[("location", "/landed")], ""),
        "/there" => answer(307, &[("location", &place)], ""),
        _ => json(200, "1"),
    })
    .await;
    let running = executor(&world, only(&["127.0.0.1"]));
    for name in ["here", "there"] {
        let config = json!({
            "method": "PUT", "url": server.url(&format!("/{name}")), "body": {"a": 1},
            "headers": {"Authorization": "Basic eA==", "Cookie": "a=b", "X-A": "kept"},
        });
        assert_eq!(run(&world, name, config, &json!({})).await.result, "1");
    }
    let (here, there) = (&server.asked_for("/landed")[0], &other.asked_for("/landed")[0]);
    for (asked, kept) in [(here, true), (there, false)] {
        assert_eq!(asked.headers.contains_key("authorization"), kept);
        assert_eq!(asked.headers.contains_key("cookie"), kept);
        assert_eq!((asked.method.as_str(), asked.body.as_str()), ("PUT", r#"{"a":1}"#));
        assert_eq!(asked.headers["x-a"], "kept");
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_task_drops_its_call() {
    let world = World::start().await;
    let server = Server::start(|_| Does::Nothing).await;
    define(
        &world,
        "d",
        json!([{"name": "a", "handler": "http", "config": {"url": server.url("/")}}]),
    )
    .await;
    let running = executor(&world, only(&["127.0.0.1"]));
    let task = world.create("d", &json!({})).await;
    server.waits().await;
    let request = v1::CancelTaskRequest { task_id: task.task_id.clone(), ..Default::default() };
    world.client.cancel_task(request).await.unwrap();
    server.given_up().await;
    assert_eq!(world.ended(&task.task_id).await.state().word(), "cancelled");
    assert_eq!(running.stop().await.voided, 1);
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_whose_time_is_up_drops_its_call() {
    let world = World::start().await;
    let server = Server::start(|_| Does::Nothing).await;
    let step = json!({
        "name": "a", "handler": "http", "timeout": "200ms", "retry": {"max_attempts": 1},
        "config": {"url": server.url("/")},
    });
    define(&world, "d", json!([step])).await;
    let running = executor(&world, only(&["127.0.0.1"]));
    let task = world.create("d", &json!({})).await;
    server.given_up().await;
    let task = world.ended(&task.task_id).await;
    // Whether the executor or the service notices first.
    assert_eq!(failure(&task.steps[0]).0, "Timeout");
    running.stop().await;
    check(&mut world.connection().await).await;
}
