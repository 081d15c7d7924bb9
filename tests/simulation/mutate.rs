//! The test of the test: one rule of a verb at a time is broken, and the simulation must notice. What it
//! cannot notice is listed too, with what guards it.

use std::sync::Mutex;

use proptest::test_runner::Config;

use super::{WORKERS, Worker, regressions::regressions};

/// The files of the verbs.
const VERBS: &[(&str, &str)] = &[
    ("append", include_str!("../../migrations/verbs/10_append.sql")),
    ("gate", include_str!("../../migrations/verbs/15_gate.sql")),
    ("queue", include_str!("../../migrations/verbs/17_queue.sql")),
    ("create_tasks", include_str!("../../migrations/verbs/20_create_tasks.sql")),
    ("create_identified", include_str!("../../migrations/verbs/21_create_identified.sql")),
    ("claim", include_str!("../../migrations/verbs/40_claim.sql")),
    ("end", include_str!("../../migrations/verbs/45_end.sql")),
    ("settle", include_str!("../../migrations/verbs/50_settle.sql")),
    ("node", include_str!("../../migrations/verbs/60_node.sql")),
    ("release_due", include_str!("../../migrations/verbs/70_release_due.sql")),
    ("grant_keys", include_str!("../../migrations/verbs/75_grant_keys.sql")),
    ("move_steps", include_str!("../../migrations/verbs/82_move_steps.sql")),
    ("move_tasks", include_str!("../../migrations/verbs/84_move_tasks.sql")),
    ("update", include_str!("../../migrations/verbs/85_update.sql")),
    ("annotate", include_str!("../../migrations/verbs/88_annotate.sql")),
    ("remove", include_str!("../../migrations/verbs/89_remove.sql")),
    ("request", include_str!("../../migrations/verbs/87_request.sql")),
    (VIEWS, include_str!("../../migrations/verbs/90_views.sql")),
];

/// These are looked at in a few cases only, but for this test in each.
const VIEWS: &str = "views";

/// A rule that is broken: what is then wrong, the file, the text, and what stands there instead.
struct Mutation(&'static str, &'static str, &'static str, &'static str);

/// All of these are noticed.
const NOTICED: &[Mutation] = &[
    Mutation(
        "positions with holes inside a batch",
        "append",
        "select v_first + e.i - 1, v_first",
        "select v_first + 2 * (e.i - 1), v_first",
    ),
    Mutation(
        "positions that are drawn twice",
        "append",
        "if v_n > 1 then perform setval('position', v_first + v_n - 1); end if;",
        "",
    ),
    Mutation(
        "places in a queue that are not in the order of commits",
        "append",
        "select queue, v_first, key, attempt",
        "select queue, 0, key, attempt",
    ),
    Mutation(
        "what waits for its time is ready at once",
        "append",
        "where due is null or due <= v_at;",
        ";",
    ),
    Mutation(
        "bypassed roots are ready",
        "create_tasks",
        "w.key <> all(coalesce(m.m_key, '{}'))",
        "true",
    ),
    Mutation("a claim without the guard of the attempt", "claim", "s.attempt = r.attempt and", ""),
    Mutation(
        "a claim without the guards of the attempt and of its time",
        "claim",
        "and s.attempt = r.attempt and s.waiting_on = 0 and s.queue = r.queue\n                       and (s.not_before is null or s.not_before <= v_at)",
        "and s.queue = r.queue",
    ),
    Mutation("a timer of another attempt", "release_due", "and s.attempt = i.attempt", ""),
    Mutation("a timer of a step that is not pending", "release_due", "s.state = 1 and", ""),
    Mutation(
        "a task that goes on has ended",
        "settle",
        "case when t.live_n + d.live = 0 then v_at end",
        "v_at",
    ),
    Mutation(
        "the newest is claimed first",
        "claim",
        "order by r.queue, r.id, r.key limit",
        "order by r.queue desc, r.id desc, r.key desc limit",
    ),
    Mutation(
        "a claim without the guard of the state",
        "claim",
        "s.state = 1 and s.attempt",
        "s.attempt",
    ),
    Mutation("a claim forgets the place it is told", "claim", "and r.id >= q.place", ""),
    Mutation(
        "one slot is filled twice",
        "claim",
        "p_session[q.at + a.rank - 1]",
        "p_session[q.at]",
    ),
    Mutation(
        "a task starts again when it is open again",
        "claim",
        "coalesce(t.started_at, v_at)",
        "v_at",
    ),
    Mutation(
        "a claim in the name of a retired node",
        "claim",
        "append(v_ev, v_wait, p_at, p_node)",
        "append(v_ev, null, p_at)",
    ),
    Mutation(
        "a task with steps in error and cancelled ones is cancelled",
        "end",
        "when failed > 0 then 4 when cancelled > 0 then 5",
        "when cancelled > 0 then 5 when failed > 0 then 4",
    ),
    Mutation(
        "what waits behind a cancelled step stays in a cancelled task",
        "end",
        "and state = 1 offset 0) w",
        "and false offset 0) w",
    ),
    Mutation(
        "steps cancelled with their task are not counted",
        "end",
        "set cancelled_n = t.cancelled_n + b.n",
        "set cancelled_n = t.cancelled_n",
    ),
    Mutation(
        "a task that completes after an error ended with it",
        "end",
        "when o.from_state = 4 and o.to_state = 3 then p_at",
        "",
    ),
    Mutation(
        "a task in error is not open again",
        "end",
        "case from_state when 4 then 1 else from_state end",
        "from_state",
    ),
    Mutation(
        "a child is released whatever its state",
        "settle",
        "k.waiting_on = 0 and k.state in (1, 2) free",
        "k.waiting_on = 0 free",
    ),
    Mutation(
        "a child gets a slot whatever its state",
        "settle",
        "t.session is not null and k.state = 1 and",
        "t.session is not null and",
    ),
    Mutation(
        "only pending children wait for one less",
        "settle",
        "where k.ctid = t.place\n",
        "where k.ctid = t.place and k.state = 1\n",
    ),
    Mutation(
        "a report of any token",
        "settle",
        "and x.state = 2 and x.token = i.token",
        "and x.state = 2",
    ),
    Mutation(
        "a sweep of any session",
        "settle",
        "and (i.session is null or x.session = i.session)",
        "",
    ),
    Mutation("a sweep of any node", "settle", "and (p_of_node is null or x.node = p_of_node)", ""),
    Mutation(
        "a sweep equals a report",
        "settle",
        "last_kind = case when v_sweep then 9 else i.kind end\n",
        "last_kind = i.kind\n",
    ),
    Mutation(
        "another kind of report is accepted again",
        "settle",
        "and s.last_kind = case when v_sweep then 9 else i.kind end",
        "",
    ),
    Mutation("a hand-back is counted", "settle", "then s.max_attempts + 1", "then s.max_attempts"),
    Mutation(
        "a released child stands in no queue",
        "settle",
        "from f where free and token is null) x) w",
        "from f where false) x) w",
    ),
    Mutation(
        "a child that got a slot is not live",
        "settle",
        "select key >> 14, 1, 0 from f where free",
        "select key >> 14, 1, 0 from f where free and token is null",
    ),
    Mutation(
        "the end does not look at cancelled steps",
        "settle",
        "when t.cancelled_n > 0 then 5 else 3",
        "else 3",
    ),
    Mutation(
        "slots of a retired node",
        "settle",
        "append(v_ev, v_wait, p_at, p_node)",
        "append(v_ev, v_wait, p_at)",
    ),
    Mutation(
        "an adoption with any token",
        "node",
        "and x.state = 2 and x.token = i.token",
        "and x.state = 2",
    ),
    Mutation(
        "an adoption by a retired node",
        "node",
        "if not found then raise",
        "if false then raise",
    ),
    Mutation(
        "a node retires again",
        "node",
        "where id = p_node and retired_at is null;\n  return found",
        "where id = p_node;\n  return found",
    ),
    Mutation(
        "a new id does not take the old one's leases",
        "node",
        "update node set taken_by = v_id where id = p_old and taken_by is null;",
        "",
    ),
    Mutation(
        "a node takes over what another walks",
        "node",
        "and not exists (select from node o where o.id = n.taken_by and o.retired_at is null)",
        "",
    ),
    Mutation(
        "a node is dead before its time",
        "node",
        "retired_at is null and lease_until < v_at",
        "retired_at is null",
    ),
    Mutation(
        "a timer is taken before its time",
        "release_due",
        "where due <= v_at order by due",
        "where true order by due",
    ),
    Mutation(
        "a timer makes ready whatever became of its step",
        "release_due",
        "and s.state = 1 and s.attempt = i.attempt and s.waiting_on = 0\n       and (s.not_before is null or s.not_before <= v_at)",
        "",
    ),
    Mutation(
        "a released child of a resolved step is not pending",
        "move_steps",
        "k.waiting_on = 0 and k.state = 1 free",
        "k.waiting_on = 0 free",
    ),
    Mutation(
        "a retried step is live while it waits",
        "move_steps",
        "when p_to = 1 then (waiting = 0)::int",
        "when p_to = 1 then 1",
    ),
    Mutation(
        "a retried step is ready while it waits",
        "move_steps",
        "where p_to = 1 and waiting = 0",
        "where p_to = 1",
    ),
    Mutation(
        "a retry lowers the attempts",
        "move_steps",
        "greatest(s.max_attempts, s.attempt + coalesce(p_more, o.planned))",
        "s.attempt + coalesce(p_more, o.planned)",
    ),
    Mutation(
        "a cancelled step is live if it ran",
        "move_steps",
        "when was = 2 or was = 1 and waiting = 0 then -1",
        "when was = 1 and waiting = 0 then -1",
    ),
    Mutation(
        "steps of ended tasks move",
        "move_steps",
        "and (select state in (1, 2, 4) from task where id = s.key >> 14)",
        "",
    ),
    Mutation(
        "a step behind a cancelled one is tried again",
        "move_steps",
        "and not coalesce(k = any(v_behind), false)",
        "",
    ),
    Mutation(
        "a resolved step hides no cancelled one",
        "move_steps",
        "and state not in (3, 6) offset 0",
        "offset 0",
    ),
    Mutation(
        "nobody is told that a lease is void",
        "move_tasks",
        "select node, session, key, token, attempt, p_reason from unnest(p_void)",
        "select node, session, key, token, attempt, p_reason from unnest(p_void) where false",
    ),
    Mutation(
        "complete tasks are cancelled without being told to override",
        "move_tasks",
        "or p_override and t.state in (3, 6)",
        "or t.state in (3, 6)",
    ),
    Mutation(
        "cancelling forgets those cancelled before",
        "move_tasks",
        "cancelled_n = t.cancelled_n + coalesce(c.n, 0)",
        "cancelled_n = coalesce(c.n, 0)",
    ),
    Mutation(
        "steps of tasks that are open are tried again",
        "move_tasks",
        "from (select distinct t from unnest(v_task, t_was) x(t, was) where was = 4) t",
        "from (select distinct t from unnest(v_task, t_was) x(t, was) where was in (2, 4)) t",
    ),
    Mutation(
        "a repeat is a request of its own",
        "request",
        "where id = p_request and method = p_method and at",
        "where false and at",
    ),
    Mutation(
        "another request with the same id is answered like the first",
        "request",
        "select hash = p_hash, answer from request",
        "select true, answer from request",
    ),
    Mutation(
        "a retry that was refused is remembered",
        "request",
        "if t_was in (1, 2) or t_steps > 0 then",
        "if true then",
    ),
    Mutation(
        "a step's retry that found it under way is not remembered",
        "request",
        "if s_moved or s_was in (1, 2) then",
        "if s_moved then",
    ),
    Mutation(
        "an open task is resolved",
        "move_tasks",
        "where uid = any(p_uid) and state = 4 returning id",
        "where uid = any(p_uid) and state in (2, 4) returning id",
    ),
    Mutation(
        "a limited task offers all it has",
        "gate",
        "order by task, queue, key limit r.n) x))",
        "order by task, queue, key) x))",
    ),
    Mutation(
        "a limited task offers its youngest steps first",
        "gate",
        "order by task, queue, key limit r.n",
        "order by task desc, queue desc, key desc limit r.n",
    ),
    Mutation(
        "a paused task offers steps",
        "gate",
        "select case when paused or held then 0 when max_parallel = 0",
        "select case when held then 0 when max_parallel = 0",
    ),
    Mutation(
        "steps that end run on",
        "gate",
        "t.running_n - n.ended + n.leased",
        "t.running_n + n.leased",
    ),
    Mutation(
        "a step that ends lets out no other",
        "gate",
        "array_agg(ended) from u",
        "array_agg(0) from u",
    ),
    Mutation(
        "a claim beyond the room of a limited task",
        "claim",
        "> t.room beyond",
        "> 1000000 beyond",
    ),
    Mutation(
        "a claim of a paused task",
        "claim",
        "case when paused or held then 0",
        "case when held then 0",
    ),
    Mutation(
        "a claim runs nothing",
        "claim",
        "set running_n = t.running_n + n.n",
        "set running_n = t.running_n",
    ),
    Mutation(
        "an offer that no longer holds takes the place of another",
        "claim",
        "v_wait := gate(v_ruled, v_more, null, v_at);",
        "",
    ),
    Mutation(
        "a child of a limited task gets a slot uncounted",
        "settle",
        "(paused or held or max_parallel > 0)",
        "(paused or held)",
    ),
    Mutation(
        "a child of a paused task gets a slot",
        "settle",
        "(paused or held or max_parallel > 0)",
        "(held or max_parallel > 0)",
    ),
    Mutation(
        "a task that goes on offers nothing of what was parked",
        "move_tasks",
        "if not p_paused and v_task is not null then",
        "if false then",
    ),
    Mutation(
        "a task that is paused does not count what runs",
        "move_tasks",
        "case when t.ruled then t.running_n else",
        "case when true then t.running_n else",
    ),
    Mutation(
        "a task that ended is paused",
        "move_tasks",
        "and t.state in (1, 2, 4) and t.paused <> p_paused",
        "and t.paused <> p_paused",
    ),
    Mutation("a task is paused twice", "move_tasks", "and t.paused <> p_paused", ""),
    Mutation("steps of a cancelled task run on", "move_tasks", "running_n = 0,", ""),
    Mutation(
        "a deadline ends what is in error once more",
        "release_due",
        "(3, '{1,2}'::smallint[], 'DeadlineExceeded', 'its task took longer than its deadline'),\n        (2, '{1,2}', 'TotalTimeout', 'with all its attempts it took longer than its total_timeout'),\n        (1, '{1}', 'QueueTimeout', 'nobody took it within its queue_timeout')) k(kind, states, class, message)\n    loop\n      select array_agg(distinct s.key)\n        from unnest(v_key, v_att, v_kind) i(key, attempt, kind),\n             lateral (\n               select key from step\n                where k.kind = 3 and key between i.key and i.key + 16383 and state in (1, 2)\n",
        "(3, '{1,2,4}'::smallint[], 'DeadlineExceeded', 'its task took longer than its deadline'),\n        (2, '{1,2}', 'TotalTimeout', 'with all its attempts it took longer than its total_timeout'),\n        (1, '{1}', 'QueueTimeout', 'nobody took it within its queue_timeout')) k(kind, states, class, message)\n    loop\n      select array_agg(distinct s.key)\n        from unnest(v_key, v_att, v_kind) i(key, attempt, kind),\n             lateral (\n               select key from step\n                where k.kind = 3 and key between i.key and i.key + 16383 and state in (1, 2, 4)\n",
    ),
    Mutation(
        "a deadline touches steps that are complete",
        "release_due",
        "(3, '{1,2}'::smallint[], 'DeadlineExceeded', 'its task took longer than its deadline'),\n        (2, '{1,2}', 'TotalTimeout', 'with all its attempts it took longer than its total_timeout'),\n        (1, '{1}', 'QueueTimeout', 'nobody took it within its queue_timeout')) k(kind, states, class, message)\n    loop\n      select array_agg(distinct s.key)\n        from unnest(v_key, v_att, v_kind) i(key, attempt, kind),\n             lateral (\n               select key from step\n                where k.kind = 3 and key between i.key and i.key + 16383 and state in (1, 2)\n",
        "(3, '{1,2,3}'::smallint[], 'DeadlineExceeded', 'its task took longer than its deadline'),\n        (2, '{1,2}', 'TotalTimeout', 'with all its attempts it took longer than its total_timeout'),\n        (1, '{1}', 'QueueTimeout', 'nobody took it within its queue_timeout')) k(kind, states, class, message)\n    loop\n      select array_agg(distinct s.key)\n        from unnest(v_key, v_att, v_kind) i(key, attempt, kind),\n             lateral (\n               select key from step\n                where k.kind = 3 and key between i.key and i.key + 16383 and state in (1, 2, 3)\n",
    ),
    Mutation(
        "a deadline ends nothing that runs",
        "release_due",
        "(3, '{1,2}'::smallint[]",
        "(3, '{1}'::smallint[]",
    ),
    Mutation(
        "a task has the deadline it had before it was open again",
        "release_due",
        "(select deadline <= v_at and state",
        "(select state",
    ),
    Mutation(
        "a deadline looks at tasks in error",
        "release_due",
        "deadline <= v_at and state in (1, 2) from task",
        "deadline <= v_at from task",
    ),
    Mutation(
        "a total time-out that was begun anew",
        "release_due",
        "where k.kind = 2 and key = i.key and due <= v_at",
        "where k.kind = 2 and key = i.key",
    ),
    Mutation(
        "a total time-out ends nothing that runs",
        "release_due",
        "(2, '{1,2}', 'TotalTimeout'",
        "(2, '{1}', 'TotalTimeout'",
    ),
    Mutation(
        "a queue time-out of an attempt before",
        "release_due",
        "and key = i.key and attempt = i.attempt and waiting_on = 0\n                  and",
        "and key = i.key and waiting_on = 0\n                  and",
    ),
    Mutation(
        "nobody is told of a lease whose time is up",
        "release_due",
        "perform signal_void(v_void, 'its time is up');",
        "",
    ),
    Mutation(
        "what runs out of time makes no room",
        "release_due",
        "v_more := v_more || m.v_wait;",
        "",
    ),
    Mutation(
        "a step whose retry is due passes the limit",
        "release_due",
        "v_wait := gate(v_ruled, null, v_wait, v_at);",
        "",
    ),
    Mutation(
        "no clock begins with an attempt after the first",
        "release_due",
        "perform start_clocks(v_ruled, v_wait, null, v_at);",
        "",
    ),
    Mutation(
        "no clock begins for what is leased at once",
        "settle",
        "start_clocks(v_ruled, v_wait, l_key, v_at)",
        "start_clocks(v_ruled, v_wait, null, v_at)",
    ),
    Mutation(
        "no clock begins when a task is created",
        "create_tasks",
        "perform start_clocks(v_ruled, v_wait, null, coalesce(p_at, clock_timestamp()));",
        "",
    ),
    Mutation(
        "no clock begins for what is retried by hand",
        "move_steps",
        "perform start_clocks(v_ruled, v_wait, null, p_at);",
        "",
    ),
    Mutation(
        "a queue time-out runs while the next attempt is not due",
        "gate",
        "and (w.due is null or w.due <= p_at) and p.queue_timeout_ms is not null",
        "and p.queue_timeout_ms is not null",
    ),
    Mutation(
        "a total time-out begins anew with each attempt",
        "gate",
        "where key = k.key and due is null) place",
        "where key = k.key) place",
    ),
    Mutation(
        "a step that is retried by hand has what is left of its total time-out",
        "move_steps",
        "case p_to when 1 then null else s.due end",
        "s.due",
    ),
    Mutation(
        "a task that is open again has what is left of its deadline",
        "end",
        "then p_at + (select deadline_ms",
        "then t.deadline + 0 * (select deadline_ms",
    ),
    Mutation(
        "no deadline runs for a task that is open again",
        "end",
        "where from_state = 4 and to_state = 1 and deadline is not null)",
        "where false)",
    ),
    Mutation(
        "a key is given twice",
        "grant_keys",
        "greatest(max(room) - count(*) filter (where granted), 0)",
        "max(room)",
    ),
    Mutation(
        "a key is never given back",
        "grant_keys",
        "and (select finished_at is not null from task where id = c.task)",
        "and false",
    ),
    Mutation(
        "a key is given on while its task is open",
        "grant_keys",
        "and (select finished_at is not null from task where id = c.task)",
        "and c.granted",
    ),
    Mutation(
        "a key goes to the youngest",
        "grant_keys",
        "and task = any(v_task) order by task\n",
        "and task = any(v_task) order by task desc\n",
    ),
    Mutation(
        "nobody looks again for those behind a task that ended while it waited",
        "grant_keys",
        "select more or exists (select from w) into more;",
        "select more into more;",
    ),
    Mutation(
        "those behind a task that ended while it waited are forgotten",
        "grant_keys",
        "select distinct id from d where not granted returning 1",
        "select distinct id from d where false returning 1",
    ),
    Mutation(
        "a task that has its key offers nothing",
        "grant_keys",
        "v_wait := gate(v_task, array_fill(1000000, array[cardinality(v_task)]), null, v_at);",
        "",
    ),
    Mutation(
        "a task that is given its key stays held",
        "grant_keys",
        "set held = false from",
        "set held = true from",
    ),
    Mutation(
        "a task goes on without its key",
        "create_tasks",
        "t.concurrency, t.concurrency is not null\n",
        "t.concurrency, false\n",
    ),
    Mutation(
        "nobody looks for the key of a new task",
        "create_tasks",
        "insert into concurrency_wake select distinct id from k;",
        "select from k into m;",
    ),
    Mutation(
        "a held task offers steps",
        "gate",
        "case when paused or held then 0 when max_parallel = 0",
        "case when paused then 0 when max_parallel = 0",
    ),
    Mutation(
        "a task that ends keeps its key",
        "gate",
        "where t.concurrency is not null and t.finished_at is not null)",
        "where false)",
    ),
    Mutation(
        "a task that is cancelled keeps its key",
        "move_tasks",
        "select distinct concurrency from t where concurrency is not null",
        "select distinct concurrency from t where false",
    ),
    Mutation(
        "a task that is open again goes on without its key",
        "end",
        "t.held or t.concurrency is not null and o.from_state = 4 and o.to_state = 1",
        "t.held",
    ),
    Mutation(
        "a task that is open again stands in no line",
        "end",
        "where from_state = 4 and to_state = 1 and concurrency is not null\n",
        "where false\n",
    ),
    Mutation(
        "a task that is open again still has its key",
        "end",
        "do update set granted = false",
        "do update set granted = concurrency.granted",
    ),
    Mutation("a paused task is said to have room", VIEWS, "t.paused or t.held or", "t.held or"),
    Mutation(
        "a task of a paused definition is said to go on",
        VIEWS,
        "paused or (select d.paused from stepwell.definition d where d.id = definition) paused",
        "paused",
    ),
    Mutation(
        "a full task is said to have room",
        VIEWS,
        "when t.max_parallel > 0 then greatest",
        "when false then greatest",
    ),
    Mutation(
        "a task that failed is said to wait for its key",
        VIEWS,
        "held and finished_at is null held",
        "held",
    ),
    Mutation(
        "what waits behind a cancelled step is said to go on",
        VIEWS,
        "state in (4, 5) offset 0",
        "state in (4) offset 0",
    ),
    Mutation(
        "what waits behind a resolved step is said to be blocked",
        VIEWS,
        "where key = b.key and state = 1 offset 0",
        "where key = b.key offset 0",
    ),
    Mutation(
        "a step is said to be ready before the time of its retry",
        VIEWS,
        "when s.not_before > coalesce(p_at, statement_timestamp()) then 'backing_off'",
        "",
    ),
    Mutation(
        "a task in which nothing is ready is said to recover",
        VIEWS,
        "when c.error_n + c.blocked_n > 0                   then 'blocked'",
        "",
    ),
    Mutation(
        "one that failed decides while another waits for its retry",
        VIEWS,
        "when c.backing_off_n > 0                           then 'backing_off'",
        "when c.backing_off_n > 0 and c.error_n = 0         then 'backing_off'",
    ),
    Mutation(
        "a claim in any queue that a step has stood in",
        "claim",
        "and s.waiting_on = 0 and s.queue = r.queue\n                       and",
        "and s.waiting_on = 0\n                       and",
    ),
    Mutation(
        "an offer of a ruled task that stands in another queue is good",
        "claim",
        "and s.waiting_on = 0\n                        and s.queue = r.queue and",
        "and s.waiting_on = 0\n                        and",
    ),
    Mutation(
        "a claim of a paused definition",
        "claim",
        "not (select paused from definition where id = (select definition from queue where id = q.queue))",
        "true",
    ),
    Mutation(
        "a child of a paused definition gets a slot",
        "settle",
        "then (select paused from definition where id = t.definition) else false end stopped",
        "then false else false end stopped",
    ),
    Mutation(
        "a pause covers nothing",
        "queue",
        "update definition d set paused = not paused\n",
        "update definition d set paused = paused\n",
    ),
    Mutation(
        "a pause of a namespace covers none of its definitions",
        "queue",
        "and p_name in ('', name)\n     and paused <>",
        "and p_name = name\n     and paused <>",
    ),
    Mutation(
        "a pause that ends frees what its namespace's pause covers",
        "queue",
        "where p.namespace = d.namespace and p.name in ('', d.name)",
        "where p.namespace = d.namespace and p.name = p_name",
    ),
    Mutation(
        "what there is not is paused",
        "queue",
        "if covered_n = 0 and not was_paused or was_paused",
        "if was_paused",
    ),
    Mutation(
        "a pause stays when it is taken back",
        "queue",
        "delete from pause where namespace = p_namespace and name = p_name;",
        "",
    ),
    Mutation(
        "a pause that is taken back takes its namespace's along",
        "queue",
        "delete from pause where namespace = p_namespace and name = p_name;",
        "delete from pause where namespace = p_namespace;",
    ),
    Mutation(
        "queues are those of one handler, whatever they require",
        "queue",
        "and requires = q.requires\n",
        "\n",
    ),
    Mutation(
        "queues are those of one requirement, whatever their handler",
        "queue",
        "and handler = q.handler and requires",
        "and requires",
    ),
    Mutation(
        "a task waits in the queues of its definition, whatever its priority",
        "create_tasks",
        "case when t.priority is null then p.queue else queue_at(p.queue, t.priority) end",
        "p.queue",
    ),
    Mutation(
        "a task forgets that it has a priority of its own",
        "create_tasks",
        "coalesce(t.priority, (select priority from definition where id = t.definition))",
        "(select priority from definition where id = t.definition)",
    ),
    Mutation(
        "a task without a priority has the usual one",
        "create_tasks",
        "coalesce(t.priority, (select priority from definition where id = t.definition))",
        "coalesce(t.priority, 3)",
    ),
    Mutation(
        "a task forgets its new priority",
        "update",
        "priority = coalesce(p_priority, priority)",
        "priority = priority",
    ),
    Mutation(
        "the priority it has is a new one",
        "update",
        "if p_priority <> (select priority from task_detail where task = v_task) then",
        "if p_priority is not null then",
    ),
    Mutation(
        "what runs stays in its queue",
        "update",
        "state in (1, 2, 4) offset",
        "state in (1, 4) offset",
    ),
    Mutation(
        "what is in error stays in its queue",
        "update",
        "state in (1, 2, 4) offset",
        "state in (1, 2) offset",
    ),
    Mutation(
        "what is done changes over",
        "update",
        "state in (1, 2, 4) offset",
        "state in (1, 2, 3, 4, 6) offset",
    ),
    Mutation(
        "what waits for its parents is offered by a new priority",
        "update",
        "where state = 1 and waiting_on = 0 and",
        "where state = 1 and",
    ),
    Mutation(
        "what runs is offered by a new priority",
        "update",
        "where state = 1 and waiting_on = 0 and",
        "where state in (1, 2) and waiting_on = 0 and",
    ),
    Mutation(
        "what is ready stands in its old queue alone",
        "update",
        "p_note, null)::ev], v_wait, p_at);",
        "p_note, null)::ev], null, p_at);",
    ),
    Mutation(
        "what is parked is offered by a new priority",
        "update",
        "and not exists (select from parked_step p where p.task = v_task and p.key = u.key and p.attempt = u.attempt)",
        "",
    ),
    Mutation(
        "what was parked once is never offered by a new priority",
        "update",
        "and p.key = u.key and p.attempt = u.attempt)",
        "and p.key = u.key)",
    ),
    Mutation(
        "what is parked stays in its old queue",
        "update",
        "update parked_step p set queue = (select queue from step where key = p.key) where task = v_task;",
        "",
    ),
    Mutation(
        "a step that backs off has no timer of its new queue",
        "update",
        "and (not_before is null or not_before <= v_at or not v_ruled)",
        "and (not_before is null or not_before <= v_at)",
    ),
    Mutation(
        "a step of a ruled task that backs off has two timers",
        "update",
        "and (not_before is null or not_before <= v_at or not v_ruled)",
        "",
    ),
    Mutation(
        "a new priority ends a back-off",
        "update",
        "case when not_before > v_at then not_before end",
        "null",
    ),
    Mutation(
        "a step may make fewer attempts than it has made",
        "update",
        "and attempt <= coalesce(p_max_attempts, attempt)\n     and s_task",
        "and s_task",
    ),
    Mutation(
        "what runs may make other attempts",
        "update",
        "and state in (1, 4) and attempt <=",
        "and attempt <=",
    ),
    Mutation(
        "steps of tasks that ended may make other attempts",
        "update",
        "and attempt <= coalesce(p_max_attempts, attempt)\n     and s_task in (1, 2, 4)",
        "and attempt <= coalesce(p_max_attempts, attempt)",
    ),
    Mutation("a fact is not kept", "annotate", "|| p_set::jsonb", ""),
    Mutation("a fact is never forgotten", "annotate", "(annotations - p_remove)", "annotations"),
    Mutation("facts forget all others", "annotate", "(annotations - p_remove) || p_set", "p_set"),
    Mutation(
        "a task has one fact more than it may",
        "annotate",
        "from jsonb_object_keys(v_all)) <= p_most",
        "from jsonb_object_keys(v_all)) <= p_most + 1",
    ),
    Mutation(
        "what there is no room for is kept all the same",
        "annotate",
        "if not t_done then return; end if;",
        "",
    ),
    Mutation(
        "a fact leads by its text of before",
        "annotate",
        "and v_all ->> o.key is distinct from o.value",
        "and v_all ->> o.key is null",
    ),
    Mutation(
        "a fact that was forgotten leads still",
        "annotate",
        "and v_all ->> o.key is distinct from o.value",
        "and v_all ->> o.key <> o.value",
    ),
    Mutation(
        "a new fact does not lead",
        "annotate",
        "where v_old ->> key is distinct from value",
        "where v_old ->> key <> value",
    ),
    Mutation(
        "a fact from the creation does not lead",
        "create_tasks",
        "if array_remove(t_annotations, null) <> '{}' then",
        "if false then",
    ),
    Mutation(
        "a key holds beyond its window",
        "create_identified",
        "and (t.window_ms is null or d.created_at > v_at - t.window_ms * interval '1 ms')",
        "",
    ),
    Mutation(
        "a key holds at the last moment of its window still",
        "create_identified",
        "d.created_at > v_at",
        "d.created_at >= v_at",
    ),
    Mutation(
        "who repeats a request is answered by its key",
        "create_identified",
        "and t.uid <> all(v_taken)",
        "",
    ),
    Mutation(
        "two with one key are both made",
        "create_identified",
        "where there is null and first = no and uid",
        "where there is null and uid",
    ),
    Mutation(
        "who repeats a request takes its key from another of the call",
        "create_identified",
        "filter (where there is null and uid <> all(v_taken))",
        "filter (where there is null)",
    ),
    Mutation(
        "who repeats a request is tried all the same",
        "create_identified",
        "first = no and uid <> all(v_taken) order by no",
        "first = no order by no",
    ),
    Mutation(
        "a key stays with the task that was too old",
        "create_identified",
        "and t.id = any(n_key) and i.task <> t.id",
        "and false",
    ),
    Mutation(
        "a key is nobody's task's",
        "create_identified",
        "and not exists (select from task where id = i.task)",
        "and false",
    ),
    Mutation("tasks are removed before their time", "remove", "finished_at <= v_age", "true"),
    Mutation(
        "tasks in error are removed with the others",
        "remove",
        "(state in (3, 5, 6) and finished_at <= v_age",
        "(state in (3, 4, 5, 6) and finished_at <= v_age",
    ),
    Mutation(
        "the walk leaves out tasks",
        "remove",
        "m_next := v_task[p_limit]",
        "m_next := v_task[p_limit] + 1",
    ),
    Mutation(
        "the walk ends where it removes few",
        "remove",
        "elsif cardinality(v_seen) = p_scan then",
        "elsif false then",
    ),
    Mutation("the walk never ends", "remove", "and created_at <= greatest(v_age, v_error)", ""),
    Mutation(
        "a task is removed that has moved since",
        "remove",
        "coalesce(t.state = i.state, true)",
        "true",
    ),
    Mutation(
        "a task is removed that has ended again since",
        "remove",
        "coalesce(t.finished_at = i.ended, true)",
        "true",
    ),
    Mutation(
        "tasks in error are removed by name unasked",
        "remove",
        "t.state = 4 and p_error",
        "t.state = 4",
    ),
    Mutation(
        "steps outlive their task",
        "remove",
        "delete from step s using unnest(p_task) t(id) where",
        "delete from step s using unnest(p_task) t(id) where false and",
    ),
    Mutation(
        "facts lead to removed tasks",
        "remove",
        "where a.name = d.key",
        "where false and a.name = d.key",
    ),
    Mutation(
        "a key is of a removed task",
        "remove",
        "delete from identity where task = any(p_task);",
        "",
    ),
    Mutation(
        "a removed task has a concurrency key",
        "remove",
        "and c.task = t.id\n    returning",
        "and false\n    returning",
    ),
    Mutation(
        "a concurrency key that a removed task had is given to nobody",
        "remove",
        "insert into concurrency_wake select distinct id from c;",
        "insert into concurrency_wake select distinct id from c where false;",
    ),
];

/// None of these can be noticed here: another guard does the same, or it takes two calls at once. They are
/// kept for what nobody thought of; the last text says what guards it besides.
const UNNOTICED: &[Mutation] = &[
    Mutation(
        "a claim without the guard of its time",
        "claim",
        "and (s.not_before is null or s.not_before <= v_at)",
        "a row is of the attempt before, or was written when its time had come",
    ),
    Mutation(
        "a claim without the guard of parents",
        "claim",
        "and s.waiting_on = 0",
        "rows are written for steps that wait for nothing, and parents that are done stay done",
    ),
    Mutation(
        "a claim without the guard of the task",
        "claim",
        "and (select state in (1, 2) from task where id = key >> 14)",
        "a task that has ended has no step that is pending and waits for nothing",
    ),
    Mutation(
        "a timer without the guard of parents",
        "release_due",
        "and s.waiting_on = 0",
        "timers are written for steps that wait for nothing",
    ),
    Mutation(
        "a timer without the guard of its time",
        "release_due",
        "and (s.not_before is null or s.not_before <= v_at)",
        "a timer of this attempt is due at that time",
    ),
    Mutation(
        "a place that is taken while its row is locked",
        "claim",
        "for update skip locked",
        "the races: it takes two calls",
    ),
    Mutation(
        "tasks that are not locked",
        "settle",
        "order by id for no key update",
        "the races: it takes two calls",
    ),
    Mutation(
        "appends that meet",
        "append",
        "perform pg_advisory_xact_lock(42)",
        "the races: it takes two calls",
    ),
    Mutation(
        "a pause that waits for nobody who leases",
        "queue",
        "perform pg_advisory_xact_lock(45);",
        "the races: it takes two calls",
    ),
    Mutation(
        "a claim that no pause waits for",
        "claim",
        "perform pg_advisory_xact_lock_shared(45);",
        "the races: it takes two calls",
    ),
    Mutation(
        "a hand-over that no pause waits for",
        "settle",
        "perform pg_advisory_xact_lock_shared(45);",
        "the races: it takes two calls",
    ),
    Mutation(
        "a pause looks at all definitions",
        "queue",
        "where namespace = p_namespace and p_name in ('', name)\n     and paused <>",
        "those that it does not cover are as they must be",
    ),
    Mutation(
        "a queue that two make at once",
        "queue",
        "on conflict do nothing",
        "the races: it takes two calls",
    ),
    Mutation(
        "a queue time-out of what runs",
        "release_due",
        "(1, '{1}', 'QueueTimeout'",
        "what runs has another attempt than the clock",
    ),
    Mutation(
        "a queue time-out without the guard of parents",
        "release_due",
        "and attempt = i.attempt and waiting_on = 0",
        "clocks begin for steps that wait for nothing",
    ),
];

/// The names of all functions of the verbs.
pub fn functions() -> impl Iterator<Item = &'static str> {
    let heads = VERBS.iter().flat_map(|(_, text)| text.split("function stepwell.").skip(1));
    heads.filter_map(|head| head.split('(').next())
}

/// The file of a verb with its rule broken.
fn broken(Mutation(name, file, from, to): &Mutation) -> String {
    let (_, text) = VERBS.iter().find(|(name, _)| name == file).unwrap();
    assert!(text.contains(from), "{name}: {file} has no {from:?}");
    text.replace(from, to)
}

#[test]
fn what_is_listed_as_guarded_twice_is_there() {
    UNNOTICED.iter().for_each(|mutation| drop(broken(mutation)));
}

/// Cases in which a broken rule must show.
const CASES_MAX: u32 = 400;

#[test]
fn a_broken_rule_is_noticed() {
    let left = Mutex::new(NOTICED.iter());
    let unnoticed = Mutex::new(Vec::new());
    let work = || {
        loop {
            let Some(mutation) = left.lock().unwrap().next() else { return };
            let mut worker = Worker::new(&broken(mutation));
            if mutation.1 == VIEWS {
                worker.thorough_every = 1;
            }
            let config = Config {
                cases: CASES_MAX,
                max_shrink_iters: 0,
                failure_persistence: None,
                ..Config::default()
            };
            let began = std::time::Instant::now();
            let mut known = regressions().map(|(_, case)| worker.run(&case));
            let noticed = known.any(|found| found.is_err()) || worker.run_many(1, config).is_err();
            let cases = worker.coverage.cases;
            println!("{:60} {cases:5} {:?}", mutation.0, began.elapsed());
            if !noticed {
                unnoticed.lock().unwrap().push(mutation.0);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(work);
        }
    });
    assert_eq!(unnoticed.into_inner().unwrap(), Vec::<&str>::new(), "no case shows these");
}
