//! The invariants of the database, as one query each that must find nothing. They look at rows
//! alone and share no code with what wrote them.

use sqlx::PgConnection;

const INVARIANTS: &[(&str, &str)] = &[
    (
        "a task's events, folded, give its state",
        "select t.id, t.state, e.to_state from stepwell.task t
           left join (select distinct on (task) task, to_state from stepwell.event
                       where no is null order by task, position desc) e on e.task = t.id
          where t.state is distinct from e.to_state",
    ),
    (
        "a step's events, folded, give its state",
        "select s.key, s.state, e.to_state from stepwell.step s
           left join (select distinct on (task, no) task, no, to_state from stepwell.event
                       where no is not null order by task, no, position desc) e
             on e.task = s.key >> 14 and e.no = s.key & 16383
          where s.state <> coalesce(e.to_state, 1)",
    ),
    (
        "each event begins where the entity's last one ended",
        "select * from (
           select position, task, no, from_state, coalesce(
                    lag(to_state) over (partition by task, no order by position),
                    case when no is not null then 1 end) as before
             from stepwell.event) x
          where from_state is distinct from before",
    ),
    (
        "waiting_on counts the parents that are not complete",
        "select s.key, s.waiting_on, w.n from stepwell.step s
           left join (select (key & ~16383::bigint) | child as key, count(*) n
                        from (select key, unnest(children) child from stepwell.step
                               where state not in (3, 6)) p group by 1) w on w.key = s.key
          where s.waiting_on <> coalesce(w.n, 0)",
    ),
    (
        "live_n counts the steps in progress or with nothing to wait for",
        "select t.id, t.live_n, count(s.key) from stepwell.task t
           left join stepwell.step s on s.key >> 14 = t.id
                and (s.state = 2 or s.state = 1 and s.waiting_on = 0)
          group by t.id, t.live_n having t.live_n <> count(s.key)",
    ),
    (
        "failed_n counts the steps in error",
        "select t.id, t.failed_n, count(s.key) from stepwell.task t
           left join stepwell.step s on s.key >> 14 = t.id and s.state = 4
          group by t.id, t.failed_n having t.failed_n <> count(s.key)",
    ),
    (
        "cancelled_n counts the steps that are cancelled",
        "select t.id, t.cancelled_n, count(s.key) from stepwell.task t
           left join stepwell.step s on s.key >> 14 = t.id and s.state = 5
          group by t.id, t.cancelled_n having t.cancelled_n <> count(s.key)",
    ),
    (
        "a step with nothing to wait for stands in a queue",
        "select s.key, s.attempt, s.queue from stepwell.step s join stepwell.task t on t.id = s.key >> 14
          where s.state = 1 and s.waiting_on = 0 and t.state in (1, 2)
         except (select key, attempt, queue from stepwell.ready_step union all
                 select key, attempt, queue from stepwell.parked_step union all
                 select t.key, t.attempt, s.queue from stepwell.timer t join stepwell.step s on s.key = t.key
                  where t.kind = 0)",
    ),
    (
        "a step that is not done has the queue of its handler at its task's priority",
        "select s.key, s.queue from stepwell.step s
           join stepwell.task t on t.id = s.key >> 14
           join stepwell.task_detail d on d.task = t.id
           join stepwell.step_template p on p.definition = t.definition and p.no = s.key & 16383
           join stepwell.queue o on o.id = p.queue
          where s.state in (1, 2, 4)
            and not exists (select from stepwell.queue q
                             where q.id = s.queue and q.priority = d.priority and q.definition = o.definition
                               and q.handler = o.handler and q.requires = o.requires)",
    ),
    (
        "the tags of tasks lead to them, and nothing else does",
        "(select unnest(tags), task from stepwell.task_detail except select tag, task from stepwell.task_tag)
         union all
         (select tag, task from stepwell.task_tag except select unnest(tags), task from stepwell.task_detail)",
    ),
    (
        "the annotations of tasks lead to them, and nothing else does",
        "(select key, value, task from stepwell.task_detail, jsonb_each_text(annotations)
          except select name, text, task from stepwell.task_annotation)
         union all
         (select name, text, task from stepwell.task_annotation
          except select key, value, task from stepwell.task_detail, jsonb_each_text(annotations))",
    ),
    (
        "a definition is paused exactly when a pause covers it",
        "select d.id from stepwell.definition d
          where d.paused <> exists (select from stepwell.pause p
                                     where p.namespace = d.namespace and p.name in ('', d.name))",
    ),
    (
        "running_n counts the steps in progress of ruled tasks, and no limit is exceeded",
        "select t.id, t.running_n, t.max_parallel, count(s.key) from stepwell.task t
           left join stepwell.step s on s.key >> 14 = t.id and s.state = 2
          where t.ruled group by t.id
         having t.running_n <> count(s.key) or t.max_parallel > 0 and t.running_n > t.max_parallel",
    ),
    (
        "no more tasks have a concurrency key than there is room for, and an open task has it or is held",
        "select c.id, null from stepwell.concurrency c join stepwell.task t on t.id = c.task
          where c.granted and t.finished_at is null group by c.id having count(*) > max(c.room)
          union all
         select t.concurrency, t.id from stepwell.task t
          where t.concurrency is not null and t.finished_at is null
            and not exists (select from stepwell.concurrency c
                             where c.id = t.concurrency and c.task = t.id and c.granted <> t.held)",
    ),
    (
        "nothing of an ended task is parked",
        "select p.task, p.key from stepwell.parked_step p join stepwell.task t on t.id = p.task
          where t.finished_at is not null",
    ),
    (
        "what is parked by a task with room is offered by each of its queues",
        "select p.task, p.queue from stepwell.parked_step p join stepwell.task t on t.id = p.task
          where t.state in (1, 2) and not t.paused and not t.held and (t.max_parallel = 0 or t.running_n < t.max_parallel)
            and exists (select from stepwell.step s where s.key = p.key and s.state = 1 and s.attempt = p.attempt)
            and not exists (select from stepwell.ready_step r where r.queue = p.queue and r.key >> 14 = p.task)",
    ),
    (
        "a task has ended exactly when nothing of it is live",
        "select t.id, t.state, t.live_n, t.finished_at from stepwell.task t
          where (t.finished_at is null) <> (t.state in (1, 2)) or (t.live_n = 0) <> (t.state not in (1, 2))",
    ),
    (
        "a complete task has only complete steps, one in error has one in error",
        "select t.id from stepwell.task t
          where t.state = 3 and exists (select from stepwell.step s where s.key between t.id << 14 and (t.id << 14) + 16383 and s.state not in (3, 6))
             or t.state = 4 and not exists (select from stepwell.step s where s.key between t.id << 14 and (t.id << 14) + 16383 and s.state = 4)
             or t.state = 5 and exists (select from stepwell.step s where s.key between t.id << 14 and (t.id << 14) + 16383 and s.state in (1, 2, 4))",
    ),
    (
        "each attempt is leased once, ended at most once, and attempts grow by one",
        "select task, no, attempt from (
           select task, no, attempt, count(*) filter (where type = 40) leased,
                  count(*) filter (where type in (41, 42, 44)) ended
             from stepwell.event where no is not null and (type in (40, 41, 44) or type = 42 and from_state = 2) group by 1, 2, 3) x
          where leased <> 1 or ended > 1
          union all
         select task, no, attempt from (
           select task, no, attempt, row_number() over (partition by task, no order by position) n
             from stepwell.event where type = 40) x where attempt <> n",
    ),
    (
        "a step starts only after all its parents are complete",
        "select p.task, p.no
           from (select key >> 14 as task, unnest(children) as no, (key & 16383)::int as parent
                   from stepwell.step) p
           join (select task, no, min(position) as first from stepwell.event where type = 40 group by 1, 2) e
             on e.task = p.task and e.no = p.no
           left join (select task, no, min(position) as first from stepwell.event
                       where no is not null and to_state in (3, 6) group by 1, 2) d
             on d.task = p.task and d.no = p.parent
          where d.first is null or d.first > e.first",
    ),
    (
        "a custom event is of a task that is there, says what it is, and moves nothing",
        "select e.position from stepwell.event e
          where e.type in (100, 101)
            and (e.from_state is distinct from e.to_state or (e.type = 101) <> (e.no is null)
                 or e.text is null or e.text !~ '^[a-z0-9_]+([.][a-z0-9_]+)+@[1-9][0-9]* '
                 or not exists (select from stepwell.task t where t.id = e.task and t.uid = e.uid))",
    ),
    (
        "what is published while an attempt runs is of the attempt that was leased last",
        "select e.position from stepwell.event e
          where e.type = 100 and e.from_state = 2
            and e.attempt <> (select max(l.attempt) from stepwell.event l
                               where l.type = 40 and l.task = e.task and l.no = e.no and l.position < e.position)",
    ),
    (
        "positions of a batch are without holes and in one piece",
        "select batch from stepwell.event group by batch
         having min(position) <> batch or max(position) - min(position) + 1 <> count(*)",
    ),
];

/// Fails with the first rows that break an invariant.
pub async fn check(connection: &mut PgConnection) {
    // Nothing is known yet of how much a test has just written: loops in loops would seem cheap.
    sqlx::query("set enable_nestloop = off").execute(&mut *connection).await.unwrap();
    for (name, sql) in INVARIANTS {
        let broken: Option<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(format!(
            "select string_agg(x::text, e'\\n') from (select * from ({sql}) y limit 5) x"
        )))
        .fetch_one(&mut *connection)
        .await
        .unwrap();
        assert_eq!(broken, None, "{name}");
    }
    sqlx::query("reset enable_nestloop").execute(&mut *connection).await.unwrap();
}
