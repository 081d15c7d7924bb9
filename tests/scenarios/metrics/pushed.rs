//! Metrics are pushed to a collector: one that takes them, and one that does not.

use std::{net::SocketAddr, time::Duration};

use opentelemetry_proto::tonic::{
    collector::metrics::v1::{
        ExportMetricsServiceRequest, ExportMetricsServiceResponse,
        metrics_service_server::{MetricsService, MetricsServiceServer},
    },
    common::v1::any_value,
    metrics::v1::{metric::Data, number_data_point},
};
use serde_json::json;
use stepwell_client::{Executor, HandlerError};
use stepwell_suite::{Kind, Nodes, Signal};
use stepwell_tests::{SOON, World};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

/// A collector that passes on what it gets.
struct Collector(mpsc::UnboundedSender<ExportMetricsServiceRequest>);

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        // The test may have seen enough.
        let _ = self.0.send(request.into_inner());
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

async fn collector() -> (SocketAddr, mpsc::UnboundedReceiver<ExportMetricsServiceRequest>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, pushed) = mpsc::unbounded_channel();
    let server = Server::builder().add_service(MetricsServiceServer::new(Collector(sender)));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    (address, pushed)
}

/// A world that pushes there, so often.
async fn world(collector: SocketAddr, interval: Duration) -> World {
    World::set_up(|options| {
        options.nodes = Nodes { task: 1, step: 1, event: 1 };
        options.env = vec![
            ("OTEL_EXPORTER_OTLP_ENDPOINT".into(), format!("http://{collector}")),
            ("OTEL_METRIC_EXPORT_INTERVAL".into(), interval.as_millis().to_string()),
        ];
    })
    .await
}

/// Runs one task to its end.
async fn run_one(world: &World) {
    world.define("{name: d, steps: [{name: a}]}").await;
    let executor =
        Executor::new(&world.client, "e").handler("a", async |_| Ok::<_, HandlerError>(()));
    let running = world.run(executor);
    let task = world.create("d", &json!({})).await;
    world.ended(&task.task_id).await;
    running.stop().await;
}

/// Tells all services to end, and sees that each does so in peace, well within its grace.
async fn end_all(world: &World) {
    for kind in [Kind::Task, Kind::Step, Kind::Event] {
        let process = world.suite.process(kind, 0).unwrap();
        process.kill(Signal::SIGTERM).await.unwrap();
        let ended = timeout(Duration::from_secs(6), process.wait()).await;
        assert_eq!(ended.map(|exit| exit.code), Ok(Some(0)), "{}-service", kind.word());
    }
}

/// The service that pushed, and the sum of a counter of it; none: it has none of that name.
fn read(pushed: &ExportMetricsServiceRequest, counter: &str) -> (String, Option<i64>) {
    let [of_resource] = pushed.resource_metrics.as_slice() else { panic!("{pushed:?}") };
    let resource = of_resource.resource.as_ref().unwrap();
    let named = |key: &str| {
        let found = resource.attributes.iter().find(|attribute| attribute.key == key);
        match found.and_then(|attribute| attribute.value.clone()?.value) {
            Some(any_value::Value::StringValue(text)) => text,
            other => panic!("{key} is {other:?}"),
        }
    };
    assert!(!named("service.instance.id").is_empty() && !named("service.version").is_empty());
    let metrics = of_resource.scope_metrics.iter().flat_map(|scope| &scope.metrics);
    let mut of_name = metrics.filter(|metric| metric.name == counter);
    let sum = of_name.next().map(|metric| {
        let Some(Data::Sum(sum)) = &metric.data else { panic!("{metric:?}") };
        sum.data_points
            .iter()
            .map(|point| match point.value {
                Some(number_data_point::Value::AsInt(n)) => n,
                ref other => panic!("{other:?}"),
            })
            .sum()
    });
    (named("service.name"), sum)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_gets_from_every_service_what_it_measures() {
    let (address, mut pushed) = collector().await;
    let world = world(address, Duration::from_millis(100)).await;
    run_one(&world).await;
    let mut wanted = vec![
        ("stepwell-task", "stepwell_task_create_answers_total", 1),
        ("stepwell-step", "stepwell_lease_ended_total", 1),
        ("stepwell-event", "stepwell_event_delivered_total", 0),
    ];
    let all_came = async {
        while !wanted.is_empty() {
            let request = pushed.recv().await.unwrap();
            wanted.retain(|(service, counter, n)| {
                read(&request, counter) != ((*service).to_owned(), Some(*n))
            });
        }
    };
    assert!(timeout(SOON, all_came).await.is_ok(), "{wanted:?} did not come");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_figures_are_pushed_when_a_service_ends() {
    let (address, mut pushed) = collector().await;
    let world = world(address, Duration::from_secs(3600)).await;
    run_one(&world).await;
    assert!(pushed.try_recv().is_err(), "its time had not come");
    end_all(&world).await;
    let mut last = Vec::new();
    while let Ok(request) = pushed.try_recv() {
        last.push(read(&request, "stepwell_task_create_answers_total"));
    }
    let of = |service: &str, sum| (service.to_owned(), sum);
    let wanted =
        [of("stepwell-task", Some(1)), of("stepwell-step", None), of("stepwell-event", None)];
    assert_eq!(last, wanted);
}

/// Takes connections, and does this with each; tells of each.
async fn bad_collector(hold: bool) -> (SocketAddr, mpsc::UnboundedReceiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, taken) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut held: Vec<TcpStream> = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            if hold {
                held.push(stream);
            }
            if sender.send(()).is_err() {
                return;
            }
        }
    });
    (address, taken)
}

async fn taken(connections: &mut mpsc::UnboundedReceiver<()>, n: usize) {
    for i in 0..n {
        let one = timeout(SOON, connections.recv()).await;
        assert!(one.is_ok(), "only {i} connections came");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_refuses_everything_is_logged_once_and_disturbs_nobody() {
    let (address, mut connections) = bad_collector(false).await;
    let world = world(address, Duration::from_millis(20)).await;
    run_one(&world).await;
    taken(&mut connections, 60).await;
    end_all(&world).await;
    for kind in [Kind::Task, Kind::Step, Kind::Event] {
        let log = world.suite.log_of(kind, 0);
        let told = log.lines().filter(|line| line.contains("metrics cannot be pushed")).count();
        assert_eq!(told, 1, "{log}");
        assert!(!log.contains("opentelemetry"), "the library is silent: {log}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_never_answers_holds_up_no_shutdown() {
    let (address, mut connections) = bad_collector(true).await;
    let world = world(address, Duration::from_millis(20)).await;
    run_one(&world).await;
    // Each service has one by now, and waits for an answer on it.
    taken(&mut connections, 3).await;
    end_all(&world).await;
}
