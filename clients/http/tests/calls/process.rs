//! The program itself: its options, its log, its secrets and its end.

use std::sync::Arc;

use serde_json::{Value, json};
use stepwell_suite::{Command, Process, Signal};
use stepwell_tests::{SOON, World, check};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::Notify,
};
use tokio_rustls::{TlsAcceptor, rustls};

use crate::{
    define, failure, run,
    server::{Does, Server, answer, json, response},
};

const SECRET: &str = "s3cr3t/of\"nobody";

/// The program over the world's services.
async fn start(world: &World, env: &[(&str, &str)]) -> Process {
    let addresses = world.suite.addresses();
    let mut command = Command::new(env!("CARGO_BIN_EXE_stepwell-http"))
        .env("STEPWELL_TASK_ADDRESS", addresses.task.join(","))
        .env("STEPWELL_STEP_ADDRESS", addresses.step.join(","))
        .env("STEPWELL_EVENT_ADDRESS", addresses.event.join(","))
        .env("STEPWELL_HTTP_LOG", "json")
        .env("STEPWELL_HTTP_LOG_FILTER", "trace")
        .log(world.suite.folder().join("http.log"));
    for (name, value) in env {
        command = command.env(*name, *value);
    }
    world.suite.guard().spawn(command).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_is_sent_and_appears_in_no_result_failure_or_line() {
    let world = World::start().await;
    let server = Server::start(|asked| {
        let said = Value::from(asked.headers["x-key"].as_str());
        match asked.nth {
            1 if asked.target.starts_with("/fails") => answer(500, &[], format!("no {said}")),
            _ => json(200, &json!({"you said": said, "at": asked.target}).to_string()),
        }
    })
    .await;
    let env = [
        ("STEPWELL_HTTP_SECRET_KEY", SECRET),
        ("STEPWELL_HTTP_ALLOW_HOST", server.host.as_str()),
        // A proxy that nobody told it to use.
        ("HTTP_PROXY", "http://127.0.0.1:9"),
    ];
    let process = start(&world, &env).await;
    let context = json!({"says": "p4yl0ad-of-nobody"});
    for (name, max_attempts) in [("works", 1), ("fails", 2)] {
        let config = json!({
            "method": "POST", "url": server.url(&format!("/{name}/${{secret.KEY}}")),
            "headers": {"X-Key": "${secret.KEY}"}, "body": "${context}",
        });
        let step = run(&world, name, config, &context).await;
        assert_eq!((step.state().word(), step.attempt), ("complete", max_attempts));
        let path = format!("/{name}/***");
        let result: Value = serde_json::from_str(&step.result).unwrap();
        assert_eq!(result, json!({"you said": "***", "at": path}));
        if name == "fails" {
            let message =
                format!("POST {}{path}: 500 Internal Server Error: no \"***\"", server.host);
            assert_eq!(failure(&step), ("HttpStatus", "HTTP_500", message.as_str()));
        }
    }
    let keys = server.asked().into_iter().map(|asked| asked.headers["x-key"].clone());
    assert_eq!(keys.collect::<Vec<_>>(), [SECRET; 3]);
    let target = "/works/s3cr3t%2Fof%22nobody";
    assert_eq!(server.asked_for(target)[0].body, context.to_string());

    process.kill(Signal::SIGTERM).await.unwrap();
    assert_eq!(process.wait().await.code, Some(0));
    let log = std::fs::read_to_string(world.suite.folder().join("http.log")).unwrap();
    assert!(!log.contains("s3cr3t") && !log.contains("p4yl0ad"), "{log}");
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let said = |message: &str| lines.iter().filter(|l| l["message"] == message).collect::<Vec<_>>();
    let [failed] = said("call failed")[..] else { panic!("{log}") };
    assert_eq!((&failed["level"], &failed["status"]), (&json!("INFO"), &json!(500)));
    assert_eq!((&failed["method"], &failed["host"]), (&json!("POST"), &json!(server.host)));
    assert_eq!(
        (&failed["error_class"], &failed["span"]["step"]),
        (&json!("HttpStatus"), &json!("a"))
    );
    for message in ["starting", "going down", "stopped"] {
        assert_eq!(said(message).len(), 1, "{message}: {log}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_is_told_to_stop_lets_its_calls_end() {
    let world = World::start().await;
    let told = Arc::new(Notify::new());
    let tell = Arc::clone(&told);
    let server =
        Server::start(move |_| Does::Later(Arc::clone(&told), response(200, &[], "done"))).await;
    let handler = json!([{"name": "a", "handler": "call", "config": {"url": server.url("/")}}]);
    define(&world, "d", handler).await;
    let env =
        [("STEPWELL_HTTP_HANDLER", "get,call"), ("STEPWELL_HTTP_ALLOW_HOST", "*:1,127.0.0.1")];
    let process = start(&world, &env).await;
    let task = world.create("d", &json!({})).await;
    server.waits().await;
    process.kill(Signal::SIGTERM).await.unwrap();
    let log = world.suite.folder().join("http.log");
    let going_down = async {
        while !std::fs::read_to_string(&log).unwrap().contains("going down") {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, going_down).await.unwrap();
    tell.notify_one();
    assert_eq!(process.wait().await.code, Some(0));
    assert_eq!(world.ended(&task.task_id).await.steps[0].result, r#""done""#);
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_setting_that_makes_no_sense_is_named_and_nothing_starts() {
    let world = World::start().await;
    for (name, value, code) in [
        ("STEPWELL_HTTP_SECRET_KEY", "abc", 1),
        ("STEPWELL_HTTP_LOG_FILTER", "a=b=c", 1),
        ("STEPWELL_HTTP_ALLOW_HOST", "http://a/", 2),
        ("STEPWELL_HTTP_HANDLER", "a b", 1),
    ] {
        let process = start(&world, &[(name, value)]).await;
        assert_eq!(process.wait().await.code, Some(code), "{name}");
        let log = std::fs::read_to_string(world.suite.folder().join("http.log")).unwrap();
        assert!(log.contains("error: "), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_is_used_when_the_program_is_told_to() {
    let world = World::start().await;
    let proxy =
        Server::start(|asked| json(200, &Value::from(asked.headers["host"].as_str()).to_string()))
            .await;
    let by_name = format!("http://localhost:{}", proxy.port);
    let env = [("STEPWELL_HTTP_PROXY_FROM_ENV", "true"), ("HTTP_PROXY", by_name.as_str())];
    let process = start(&world, &env).await;
    // The proxy looks the name up, not we.
    let step = run(&world, "far", json!({"url": "http://shop.invalid/x"}), &json!({})).await;
    assert_eq!(step.result, r#""shop.invalid""#);
    // What leads inside by its address is refused all the same, and so is the proxy itself.
    for (name, url) in [("inside", "http://10.0.0.1/"), ("proxy", by_name.as_str())] {
        let step = run(&world, name, json!({"url": url}), &json!({})).await;
        assert_eq!(failure(&step).0, "HostNotAllowed", "{url}");
    }
    assert_eq!(proxy.asked().len(), 1);
    process.kill(Signal::SIGTERM).await.unwrap();
    assert_eq!(process.wait().await.code, Some(0));
}

/// A server with a certificate for localhost that answers `true`; its port, and the certificate.
async fn tls_server() -> (u16, String) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // One that does not trust the certificate goes away.
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") && stream.read_buf(&mut asked).await.unwrap() > 0 {}
            let answer = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\ntrue";
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
        }
    });
    (port, made.cert.pem())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_checked_against_the_roots_of_the_machine() {
    let world = World::start().await;
    let (port, certificate) = tls_server().await;
    let roots = world.suite.folder().join("roots.pem");
    std::fs::write(&roots, certificate).unwrap();
    let config = json!({"url": format!("https://localhost:{port}/")});
    let hosts = ("STEPWELL_HTTP_ALLOW_HOST", "localhost,127.0.0.1");
    for (name, roots, class) in
        [("trusted", Some(roots.to_str().unwrap()), None), ("unknown", None, Some("ConnectError"))]
    {
        let roots = roots.map(|roots| ("SSL_CERT_FILE", roots));
        let process =
            start(&world, &[Some(hosts), roots].into_iter().flatten().collect::<Vec<_>>()).await;
        let step = run(&world, name, config.clone(), &json!({})).await;
        match class {
            None => assert_eq!(step.result, r#""true""#, "{step:?}"),
            Some(class) => assert_eq!(failure(&step).0, class),
        }
        process.kill(Signal::SIGTERM).await.unwrap();
        assert_eq!(process.wait().await.code, Some(0));
    }
}
