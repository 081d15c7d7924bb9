//! What servers answer, and what becomes of the step.

use std::{
    io::Write,
    time::{Duration, SystemTime},
};

use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use stepwell_client::{Start, v1};
use stepwell_tests::{World, check, until};

use crate::{
    define, executor, failure, only, run,
    server::{Server, answer, json},
};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cart_and_its_products_are_fetched_and_their_order_is_posted() {
    let world = World::start().await;
    let server = Server::start(|asked| match asked.target.as_str() {
        "/carts/2" => {
            json(200, r#"{"id": 2, "user": 62, "total": 2.580, "lines": [{"product": 25}]}"#)
        }
        "/products?ids=25&all=false" => json(200, r#"[{"id": 25, "price": 1.29}]"#),
        "/orders" => json(201, r#"{"order_id": 2}"#),
        _ => answer(404, &[], "Cart not found"),
    })
    .await;
    define(&world, "cart", json!([
        {"name": "fetch_cart", "handler": "http",
         "config": {"url": server.url("/carts/${context.cart_id}")}},
        {"name": "fetch.products", "handler": "http",
         "config": {"url": server.url("/products"), "query": {"ids": "${context.ids}", "all": false}}},
        {"name": "create_order", "handler": "http", "depends_on": ["fetch_cart", "fetch.products"],
         "config": {
            "method": "POST", "url": server.url("/orders"),
            "headers": {"X-User": "u-${steps.fetch_cart.user}"},
            "body": {
                "total": "${steps.fetch_cart.total}", "lines": "${steps.fetch_cart.lines}",
                "first": "${steps.fetch.products.0}", "note": "cart ${steps.fetch_cart.id}",
            },
         }},
    ])).await;
    let running = executor(&world, only(&["127.0.0.1"]));
    let create = async |cart_id: i32| {
        let request = v1::CreateTaskRequest {
            definition_name: "cart".into(),
            context: json!({"cart_id": cart_id, "ids": [25]}).to_string(),
            traceparent: format!("00-{TRACE}-00f067aa0ba902b7-01"),
            ..Default::default()
        };
        let task = world.client.create_task(request).await.unwrap().task.unwrap();
        world.ended(&task.task_id).await
    };

    let task = create(2).await;
    assert_eq!(task.state().word(), "complete");
    assert_eq!(task.steps[2].result, r#"{"order_id":2}"#);
    let [order] = &server.asked_for("/orders")[..] else { panic!("{:?}", server.asked()) };
    assert_eq!(
        order.body,
        r#"{"total":2.580,"lines":[{"product":25}],"first":{"id":25,"price":1.29},"note":"cart 2"}"#
    );
    assert_eq!((order.method.as_str(), order.headers["x-user"].as_str()), ("POST", "u-62"));
    assert_eq!(order.headers["content-type"], "application/json");
    assert_eq!(order.headers["idempotency-key"], task.steps[2].step_id);
    assert!(order.headers["traceparent"].starts_with(&format!("00-{TRACE}-")));

    let task = create(999_999).await;
    assert_eq!(task.state().word(), "error");
    let (class, code, message) = failure(&task.steps[0]);
    assert_eq!((class, code, task.steps[0].attempt), ("HttpStatus", "HTTP_404", 1));
    let host = &server.host;
    assert_eq!(message, format!("GET {host}/carts/999999: 404 Not Found: Cart not found"));
    running.stop().await;
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_asks_to_wait_is_called_again_after_that_wait() {
    let world = World::start().await;
    let server = Server::start(|asked| {
        let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(2));
        match (asked.nth, asked.target.as_str()) {
            (1, "/seconds") => answer(429, &[("retry-after", "1")], ""),
            (1, "/date") => answer(503, &[("retry-after", &date)], ""),
            (1, "/soon") => answer(429, &[("retry-after", "soon")], ""),
            (1, "/bare") => answer(503, &[], ""),
            (1, "/unheeded") => answer(500, &[("retry-after", "1")], ""),
            (1, "/listed") => answer(404, &[("retry-after", "1")], ""),
            _ => json(200, "true"),
        }
    })
    .await;
    let running = executor(&world, only(&["127.0.0.1"]));
    let mut feed = world.feed(Start::Earliest).await;
    let (policy, server_s) = (v1::BackoffType::Exponential, v1::BackoffType::ServerRequested);
    for (name, kind, least, most) in [
        ("seconds", server_s, 1000, 1000),
        ("date", server_s, 1, 2000),
        ("soon", policy, 1, 20),
        ("bare", policy, 1, 20),
        ("unheeded", policy, 1, 20),
        ("listed", server_s, 1000, 1000),
    ] {
        let config = json!({"url": server.url(&format!("/{name}")), "retry": [404]});
        let step = run(&world, name, config, &json!({})).await;
        assert_eq!((step.attempt, step.result.as_str()), (2, "true"), "{name}");
        let events = until(&mut feed, |event| event.name == "task.completed").await;
        let failed = events.into_iter().find_map(|event| match event.detail {
            Some(v1::event::Detail::StepFailed(failed)) => Some(failed),
            _ => None,
        });
        let failed = failed.unwrap();
        let backoff: Duration = failed.backoff.unwrap().try_into().unwrap();
        assert_eq!(failed.backoff_type(), kind, "{name}");
        assert!((least..=most).contains(&backoff.as_millis()), "{name}: {backoff:?}");
        let keys = server.asked_for(&format!("/{name}"));
        let keys = keys.iter().map(|asked| asked.headers["idempotency-key"].as_str());
        assert_eq!(keys.collect::<Vec<_>>(), [step.step_id.as_str(); 2]);
    }
    running.stop().await;
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_status_means_and_what_breaks_ends_or_repeats_a_step() {
    let world = World::start().await;
    let server = Server::start(|asked| match (asked.target.as_str(), asked.nth) {
        ("/422?q=1", _) => answer(422, &[], format!("no {}", "x".repeat(2000))),
        ("/once", 1) => answer(500, &[], "oops"),
        ("/always", _) => answer(418, &[], ""),
        ("/exists", _) => json(409, r#"{"status": "already_exists"}"#),
        ("/nothing", _) => crate::server::Does::Nothing,
        ("/loop", _) => answer(302, &[("location", "/loop")], ""),
        ("/found", _) => answer(303, &[("location", "/seen#x")], ""),
        ("/nowhere", _) => answer(302, &[], ""),
        _ => json(200, &format!("{:?}", asked.method)),
    })
    .await;
    // A port that was ours and is nobody's now.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let running = executor(&world, only(&["127.0.0.1"]));
    let at = |target: &str| server.url(target);
    for (name, config, attempts, state, class, code) in [
        (
            "refused",
            json!({"url": at("/422"), "query": {"q": 1}}),
            1,
            "error",
            "HttpStatus",
            "HTTP_422",
        ),
        ("once", json!({"url": at("/once")}), 2, "complete", "HttpStatus", "HTTP_500"),
        ("always", json!({"url": at("/always")}), 3, "error", "HttpStatus", "HTTP_418"),
        (
            "final",
            json!({"url": at("/always"), "permanent": ["410-419"]}),
            1,
            "error",
            "HttpStatus",
            "HTTP_418",
        ),
        ("exists", json!({"url": at("/exists"), "success": [409]}), 1, "complete", "", ""),
        ("late", json!({"url": at("/nothing"), "timeout": "50ms"}), 3, "error", "Timeout", ""),
        ("nobody", json!({"url": format!("http://{nobody}/")}), 3, "error", "ConnectError", ""),
        (
            "no tls",
            json!({"url": format!("https://{}/", server.host)}),
            3,
            "error",
            "ConnectError",
            "",
        ),
        ("loop", json!({"url": at("/loop")}), 1, "error", "RedirectRefused", ""),
        ("unfollowed", json!({"url": at("/found"), "success": [303]}), 1, "complete", "", ""),
        ("found", json!({"url": at("/found"), "method": "POST", "body": 1}), 1, "complete", "", ""),
        ("nowhere", json!({"url": at("/nowhere")}), 3, "error", "HttpStatus", "HTTP_302"),
        ("key", json!({"url": at("/"), "uri": 1}), 1, "error", "ConfigurationError", ""),
        ("none", json!({}), 1, "error", "ConfigurationError", ""),
        ("missing", json!({"url": at("/${context.id}")}), 1, "error", "MissingValue", ""),
        ("stranger", json!({"url": at("/${steps.b}")}), 1, "error", "MissingValue", ""),
        ("secret", json!({"url": at("/${secret.B}")}), 1, "error", "MissingValue", ""),
        ("up", json!({"url": at("/x/${context.up}")}), 1, "error", "InvalidValue", ""),
        (
            "header",
            json!({"url": at("/"), "headers": {"a": "${context.crlf}"}}),
            1,
            "error",
            "InvalidValue",
            "",
        ),
        (
            "large",
            json!({"url": at("/"), "method": "PUT", "body": "${context.big}${context.big}"}),
            1,
            "error",
            "RequestTooLarge",
            "",
        ),
    ] {
        let context = json!({"up": "..", "crlf": "a\r\nb: c", "big": "x".repeat(600_000)});
        let step = run(&world, &name.replace(' ', "_"), config, &context).await;
        assert_eq!((step.state().word(), step.attempt), (state, attempts), "{name}: {step:?}");
        if !class.is_empty() {
            let (found, found_code, message) = failure(&step);
            assert_eq!((found, found_code), (class, code), "{name}: {message}");
            assert!(message.len() < 1300 && !message.contains("q=1"), "{name}: {message}");
        }
    }
    assert_eq!(server.asked_for("/nothing").len(), 3);
    assert_eq!(server.asked_for("/loop").len(), 6);
    assert_eq!(server.asked_for("/seen")[0].method, "GET");
    assert!(server.asked_for("/").is_empty(), "a wrong call was made");
    running.stop().await;
    check(&mut world.connection().await).await;
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_are_bounded_and_keep_their_type_and_digits() {
    let world = World::start().await;
    let server = Server::start(|asked| match asked.target.as_str() {
        "/json" => {
            answer(200, &[("content-type", "application/hal+json")], r#"{"b": 1.10, "a": 1e2}"#)
        }
        "/text" => answer(200, &[("content-type", "text/plain")], "[1]"),
        "/empty" => answer(204, &[("x-a", "b")], ""),
        "/gzip" => {
            let headers = [("content-type", "application/json"), ("content-encoding", "gzip")];
            answer(200, &headers, gzip(b"[true]"))
        }
        "/bomb" => answer(200, &[("content-encoding", "gzip")], gzip(&vec![b'x'; 50 << 20])),
        "/exact" => answer(200, &[], "x".repeat(262_144)),
        _ => answer(200, &[], "x".repeat(262_145)),
    })
    .await;
    let running = executor(&world, only(&["127.0.0.1"]));
    for (name, further, result) in [
        ("json", json!({}), r#"{"b":1.10,"a":1e2}"#),
        ("text", json!({}), r#""[1]""#),
        ("empty", json!({}), "null"),
        ("gzip", json!({}), "[true]"),
        // Too large to be read with its task.
        ("exact", json!({}), ""),
        ("bomb", json!({"response_bytes_max": 1_048_576}), "ResponseTooLarge"),
        ("over", json!({}), "ResponseTooLarge"),
        ("exact", json!({"result": "full"}), "ResponseTooLarge"),
        ("json", json!({"method": "HEAD"}), "null"),
        ("gzip", json!({"method": "HEAD"}), "null"),
    ] {
        let mut config = json!({"url": server.url(&format!("/{name}"))});
        config.as_object_mut().unwrap().extend(further.as_object().unwrap().clone());
        let definition = format!("{name}{}", further.to_string().len());
        let step = run(&world, &definition, config, &json!({})).await;
        if result == "ResponseTooLarge" {
            assert_eq!((failure(&step).0, step.attempt), (result, 1), "{name}");
        } else {
            assert_eq!(step.state().word(), "complete", "{name}: {step:?}");
            assert_eq!(step.result.replace("1e+2", "1e2"), result, "{name}: {step:?}");
            assert_eq!(step.result_omitted, result.is_empty());
        }
    }
    let full = json!({"url": server.url("/empty"), "result": "full"});
    let step = run(&world, "full", full, &json!({})).await;
    let result: Value = serde_json::from_str(&step.result).unwrap();
    assert_eq!((&result["status"], &result["body"]), (&json!(204), &json!(null)));
    assert_eq!(result["headers"]["x-a"], "b");
    running.stop().await;
    check(&mut world.connection().await).await;
}
