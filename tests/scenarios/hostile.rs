//! Peers that mean ill, all at once, against real services: what ordinary clients asked for is done
//! meanwhile, memory and logs stay small, and nothing is left when they are gone.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::{Reason, client::SendRequest};
use http::Request;
use serde_json::json;
use stepwell_client::{Executor, Start, StepContext};
use stepwell_proto::v1::{
    BatchCreateTasksRequest, CreateTaskRequest, GetTaskRequest, HandlerOffer, Hello,
    SubscribeRequest, WorkRequest, subscribe_request, task_service_client,
};
use stepwell_suite::{Kind, Nodes};
use stepwell_tests::{SOON, World, check, until};
use tokio::{io::AsyncReadExt, net::TcpSocket};
use tokio_util::sync::CancellationToken;
use tonic::codec::CompressionEncoding::{Gzip, Zstd};

/// What no payload in a log may contain.
const MARK: &str = "sesame-7c1d";
/// The most memory that a service may ever have had while they were at work: 256 MiB for messages and
/// answers under way, and as much again and more for everything else. Without the bounds it is 5 GiB.
const RESIDENT_MAX_MIB: u64 = 700;
/// Lines of its log, for each second of theirs: a few places, of each at most 100. Without that bound
/// it is as many as they make calls.
const LINES_PER_SECOND_MAX: u64 = 400;

const DEFINITIONS: [&str; 2] = [
    "{name: ordinary, steps: [{name: a}, {name: b, depends_on: [a]}]}",
    "{name: bait, steps: [{name: taken}]}",
];

/// Where an attack goes, and what it needs.
#[derive(Clone)]
struct Target {
    task: String,
    step: String,
    event: String,
    large_task: String,
    /// Attacks that got somewhere, so that none of them only seems to be made.
    hits: Arc<AtomicU64>,
}

impl Target {
    fn hit(&self) {
        self.hits.fetch_add(1, Ordering::Relaxed);
    }
}

fn host(address: &str) -> SocketAddr {
    address.strip_prefix("http://").unwrap().parse().unwrap()
}

/// A connection from some address of this machine, whose streams take nothing if so wanted. None
/// while there is no room for it.
async fn connect(address: &str, from: u8, takes: bool) -> Option<SendRequest<Bytes>> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, from], 0).into()).unwrap();
    let stream = socket.connect(host(address)).await.ok()?;
    let mut builder = h2::client::Builder::new();
    if !takes {
        builder.initial_window_size(0);
    }
    let (sender, connection) = builder.handshake(stream).await.ok()?;
    // It answers questions whether it is there, as long as anybody asks.
    tokio::spawn(connection);
    Some(sender)
}

fn post(address: &str, path: &str) -> Request<()> {
    Request::post(format!("{address}{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap()
}

fn framed(message: &impl prost::Message) -> Bytes {
    let bytes = message.encode_to_vec();
    let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
    [&[0], &length[..], &bytes].concat().into()
}

/// Opens as many streams as it gets, resets every one, and begins anew when it is sent away.
async fn reset_streams(target: Target) {
    loop {
        let Some(mut sender) = connect(&target.task, 2, true).await else { continue };
        while let Ok(mut ready) = sender.clone().ready().await {
            let request = post(&target.task, "/grpc.health.v1.Health/Watch");
            let Ok((_, mut stream)) = ready.send_request(request, false) else { break };
            stream.send_reset(Reason::CANCEL);
            target.hit();
            sender = ready;
            tokio::task::yield_now().await;
        }
    }
}

/// Holds as many streams as it gets, on a few connections.
async fn hold_streams(target: Target) {
    let (mut held, mut senders) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        let Some(mut sender) = connect(&target.event, 3, false).await else { continue };
        for _ in 0..1024 {
            let Ok(ready) = sender.clone().ready().await else { break };
            sender = ready;
            let request = post(&target.event, "/grpc.health.v1.Health/Watch");
            let Ok((answer, mut stream)) = sender.send_request(request, false) else { break };
            stream.send_data(Bytes::from_static(&[0; 5]), true).ok();
            held.push((answer, stream));
            target.hit();
        }
        senders.push(sender);
    }
    std::future::pending::<()>().await;
}

/// Holds as many connections as it gets, and asks for more.
async fn hold_connections(target: Target) {
    let mut held = Vec::new();
    loop {
        match TcpSocket::new_v4().unwrap().connect(host(&target.step)).await {
            Ok(mut stream) => {
                if held.len() < 300 {
                    held.push(stream);
                } else {
                    // Over its share, or cut off for saying nothing.
                    stream.read_exact(&mut [0; 1]).await.ok();
                    held.clear();
                }
                target.hit();
            }
            Err(_) => held.clear(),
        }
    }
}

/// Sends all but the last byte of large messages.
async fn half_send(target: Target) {
    let length = (4_u32 << 20).to_be_bytes();
    let start = Bytes::from([&[0], &length[..]].concat());
    let most = Bytes::from(vec![0; (4 << 20) - 1]);
    loop {
        let Some(mut sender) = connect(&target.task, 4, true).await else { continue };
        let mut held = Vec::new();
        for _ in 0..200 {
            let Ok(ready) = sender.ready().await else { break };
            sender = ready;
            let path = "/stepwell.v1.TaskService/BatchCreateTasks";
            let Ok(mut call) = sender.send_request(post(&target.task, path), false) else { break };
            call.1.send_data(start.clone(), false).ok();
            call.1.send_data(most.clone(), false).ok();
            held.push(call);
            target.hit();
        }
        for (answer, _) in held {
            answer.await.ok();
        }
    }
}

/// Asks for large answers and takes none of them.
async fn take_no_answers(target: Target) {
    let task_id = target.large_task.clone();
    let request = framed(&GetTaskRequest { task_id, include_results: true, ..Default::default() });
    loop {
        let Some(mut sender) = connect(&target.task, 5, false).await else { continue };
        let mut held = Vec::new();
        for _ in 0..500 {
            let Ok(ready) = sender.ready().await else { break };
            sender = ready;
            let path = "/stepwell.v1.TaskService/GetTask";
            let Ok((answer, mut body)) = sender.send_request(post(&target.task, path), false)
            else {
                break;
            };
            body.send_data(request.clone(), true).ok();
            if let Ok(answer) = answer.await {
                held.push(answer);
                target.hit();
            }
        }
        // Until it is cut off.
        for answer in held {
            answer.into_body().data().await;
        }
    }
}

/// Messages that are small on the wire only, or too large, or none.
async fn send_bombs(target: Target) {
    let context = format!(r#"{{"x": "{}"}}"#, "x".repeat(16 << 20));
    let bomb = CreateTaskRequest { context, ..CreateTaskRequest::default() };
    loop {
        for encoding in [Gzip, Zstd] {
            let connected =
                task_service_client::TaskServiceClient::connect(target.task.clone()).await;
            let Ok(client) = connected else { continue };
            let refused = client.send_compressed(encoding).create_task(bomb.clone()).await;
            refused.unwrap_err();
            target.hit();
        }
        for body in [Bytes::from(vec![0xff; 50_000]), framed(&bomb).slice(..1 << 20)] {
            let Some(mut sender) = connect(&target.task, 6, true).await else { continue };
            let path = "/stepwell.v1.TaskService/CreateTask";
            let Ok((answer, mut sent)) = sender.send_request(post(&target.task, path), false)
            else {
                continue;
            };
            sent.send_data(body, true).ok();
            answer.await.ok();
            target.hit();
        }
        // Headers larger than all that is taken, and JSON deeper than any stack.
        let mut request = post(&target.task, "/stepwell.v1.TaskService/GetTask");
        request.headers_mut().insert("x-huge", "x".repeat(1 << 20).parse().unwrap());
        if let Some(mut sender) = connect(&target.task, 6, true).await
            && let Ok((answer, _)) = sender.send_request(request, true)
        {
            answer.await.ok();
        }
        let deep = "[".repeat(500_000);
        let deep = CreateTaskRequest { context: deep, ..CreateTaskRequest::default() };
        let batch = BatchCreateTasksRequest { requests: vec![deep; 4] };
        let connected = task_service_client::TaskServiceClient::connect(target.task.clone()).await;
        if let Ok(mut client) = connected {
            client.batch_create_tasks(batch).await.unwrap_err();
            target.hit();
        }
    }
}

/// Sends messages that are small on the wire and huge in memory, and never ends the calls.
async fn send_seeds(target: Target) {
    // Two million empty requests.
    let seeds = Bytes::from([&[0, 0, 61, 9, 0][..], &[0x0a, 0].repeat(2_000_000)].concat());
    loop {
        let Some(mut sender) = connect(&target.task, 10, true).await else { continue };
        let mut held = Vec::new();
        for _ in 0..30 {
            let Ok(ready) = sender.ready().await else { break };
            sender = ready;
            let path = "/stepwell.v1.TaskService/BatchCreateTasks";
            let Ok(mut call) = sender.send_request(post(&target.task, path), false) else { break };
            call.1.send_data(seeds.clone(), false).ok();
            held.push(call);
            target.hit();
        }
        for (n, (answer, mut stream)) in held.into_iter().enumerate() {
            if n % 2 == 0 {
                stream.send_data(Bytes::new(), true).ok();
            }
            answer.await.ok();
        }
    }
}

/// Subscribes to everything and reads nothing.
async fn read_no_events(target: Target) {
    let start = Some(subscribe_request::Start::Earliest(Default::default()));
    let request = framed(&SubscribeRequest { start, ..SubscribeRequest::default() });
    let mut held = Vec::new();
    for _ in 0..2 {
        let Some(mut sender) = connect(&target.event, 7, false).await else { continue };
        for _ in 0..50 {
            let Ok(ready) = sender.ready().await else { break };
            sender = ready;
            let path = "/stepwell.v1.EventService/Subscribe";
            let Ok((answer, mut body)) = sender.send_request(post(&target.event, path), false)
            else {
                break;
            };
            body.send_data(request.clone(), true).ok();
            held.push((sender.clone(), answer.await));
            target.hit();
        }
    }
    std::future::pending::<()>().await;
}

/// Takes a lease for every step there is of a handler, says all the time that it is there, and reads
/// nothing.
async fn hoard_leases(target: Target) {
    let handlers = vec![HandlerOffer { name: "taken".into(), ..HandlerOffer::default() }];
    let hello = Hello { slots: 10_000, handlers, name: "hoard\nERROR".into(), ..Hello::default() };
    let hello = framed(&WorkRequest { hello: Some(hello), ..WorkRequest::default() });
    let sign = framed(&WorkRequest::default());
    loop {
        let Some(mut sender) = connect(&target.step, 8, false).await else { continue };
        let path = "/stepwell.v1.StepService/Work";
        let Ok((answer, mut said)) = sender.send_request(post(&target.step, path), false) else {
            continue;
        };
        said.send_data(hello.clone(), false).ok();
        let opened = answer.await;
        target.hit();
        let mut every = tokio::time::interval(Duration::from_millis(200));
        while said.send_data(sign.clone(), false).is_ok() {
            every.tick().await;
        }
        drop(opened);
    }
}

/// Comes and goes, as an executor that would be told of in the log each time.
async fn come_and_go(target: Target) {
    let handlers = vec![HandlerOffer { name: "nothing".into(), ..HandlerOffer::default() }];
    let hello = Hello { handlers, name: MARK.into(), ..Hello::default() };
    let hello = framed(&WorkRequest { hello: Some(hello), ..WorkRequest::default() });
    loop {
        let Some(sender) = connect(&target.step, 9, true).await else { continue };
        while let Ok(mut sender) = sender.clone().ready().await {
            let path = "/stepwell.v1.StepService/Work";
            let Ok((answer, mut said)) = sender.send_request(post(&target.step, path), false)
            else {
                break;
            };
            said.send_data(hello.clone(), false).ok();
            answer.await.ok();
            said.send_reset(Reason::CANCEL);
            target.hit();
        }
    }
}

/// The most memory a process ever had, in MiB.
fn resident_most(world: &World, kind: Kind) -> u64 {
    let pid = world.suite.process(kind, 0).unwrap().pid;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let most = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    most.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_hostile_peers_do_at_once_ordinary_tasks_end_and_memory_and_logs_stay_small() {
    let args = ["--connections-per-address-max", "200", "--keepalive", "2"];
    let world = World::set_up(|options| {
        options.nodes = Nodes { task: 1, step: 1, event: 1 };
        options.args = args.map(str::to_owned).into();
        options.env = stepwell_tests::short_terms();
    })
    .await;
    for yaml in DEFINITIONS {
        world.define(yaml).await;
    }
    let large = json!({"mark": MARK, "x": "x".repeat(900 << 10)});
    let mut baits = Vec::new();
    for _ in 0..40 {
        baits.push(world.create("bait", &large).await.task_id);
    }
    let addresses = world.suite.addresses();
    let target = |hits: &Arc<AtomicU64>| Target {
        task: addresses.task[0].clone(),
        step: addresses.step[0].clone(),
        event: addresses.event[0].clone(),
        large_task: baits[0].clone(),
        hits: Arc::clone(hits),
    };
    let over = CancellationToken::new();
    let began = Instant::now();
    let mut attacks = Vec::new();
    let mut attack =
        |name: &'static str, run: fn(Target) -> futures::future::BoxFuture<'static, ()>| {
            let hits = Arc::default();
            let attack = run(target(&hits));
            let over = over.clone();
            let task = tokio::spawn(async move {
                tokio::select! {
                    () = over.cancelled() => {}
                    () = attack => {}
                }
            });
            attacks.push((name, hits, task));
        };
    attack("reset streams", |t| Box::pin(reset_streams(t)));
    attack("hold streams", |t| Box::pin(hold_streams(t)));
    attack("hold connections", |t| Box::pin(hold_connections(t)));
    attack("half send", |t| Box::pin(half_send(t)));
    attack("take no answers", |t| Box::pin(take_no_answers(t)));
    attack("send bombs", |t| Box::pin(send_bombs(t)));
    attack("send seeds", |t| Box::pin(send_seeds(t)));
    attack("read no events", |t| Box::pin(read_no_events(t)));
    attack("hoard leases", |t| Box::pin(hoard_leases(t)));
    attack("come and go", |t| Box::pin(come_and_go(t)));

    // Ordinary work, one after the other, until every attack has been made many times.
    let ordinary = Executor::new(&world.client, "ordinary")
        .handler("a", async |step: StepContext| Ok(step.attempt()))
        .handler("b", async |step: StepContext| step.parent::<i32>("a").await);
    let ordinary = world.run(ordinary);
    let mut feed = world.feed(Start::Latest).await;
    let made = |hits: &Arc<AtomicU64>| hits.load(Ordering::Relaxed);
    let mut done = 0;
    while done < 100 || attacks.iter().any(|(_, hits, _)| made(hits) == 0) {
        let task = world.create("ordinary", &json!({"n": done})).await;
        let task = tokio::time::timeout(SOON, world.ended(&task.task_id)).await.unwrap();
        assert_eq!(task.state().word(), "complete");
        done += 1;
    }
    let last = world.create("ordinary", &json!({"n": done})).await.task_id;
    until(&mut feed, |event| event.task_id == last && event.name == "task.completed").await;

    over.cancel();
    for (name, hits, task) in attacks {
        assert!(made(&hits) > 0, "{name} was not made");
        eprintln!("{name}: {}", made(&hits));
        if let Err(error) = task.await {
            std::panic::resume_unwind(error.into_panic());
        }
    }
    for kind in [Kind::Task, Kind::Step, Kind::Event] {
        let (most, log) = (resident_most(&world, kind), world.suite.log_of(kind, 0));
        let lines = log.lines().count() as u64;
        let lines_max = LINES_PER_SECOND_MAX * (began.elapsed().as_secs() + 1);
        eprintln!("{}: {most} MiB at most, {lines} lines of {lines_max}", kind.word());
        assert!(most < RESIDENT_MAX_MIB, "{kind:?} had {most} MiB");
        assert!(lines < lines_max, "{kind:?} logged {lines} lines");
        assert!(!log.contains("xxxxxxxx"), "payloads are not logged");
        assert!(!log.lines().any(|line| line.starts_with("ERROR")), "nobody else writes lines");
    }
    // What was hoarded is given to who does it.
    let honest = Executor::new(&world.client, "honest")
        .handler("taken", async |step: StepContext| Ok(step.attempt()));
    let honest = world.run(honest);
    for task_id in baits {
        assert_eq!(world.ended(&task_id).await.state().word(), "complete");
    }
    honest.stop().await;
    ordinary.stop().await;
    check(&mut world.connection().await).await;
}
