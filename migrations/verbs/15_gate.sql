-- Ruled tasks: how many of their steps may run, and how long they may wait.
--
-- A row in ready_step is an offer: any number may stand there, `claim` decides under the task's lock. So that
-- there are never many more offers than a limited task has room for, `gate` parks what is beyond, and lets it
-- out by queue, so that a queue nobody serves holds up no other.

-- Of steps that became ready: those of limited or paused tasks are parked, and as many of each queue are let
-- out as the task has room for, but at most p_more[i] of task p_task[i] (what has ended meanwhile) and as many as
-- came. Steps that are due later pass: the timer asks again.
--
-- Locks   nothing: the caller has the tasks.
-- Answers what may go to the queues.
create or replace function stepwell.gate(p_task bigint[], p_more int[], p_wait stepwell.waiter[], p_at timestamptz)
  returns stepwell.waiter[] language plpgsql volatile set search_path = stepwell as $$
declare
  v_task bigint[];
  v_out  waiter[];
begin
  select array_agg(id) from unnest(p_task) i,
         lateral (select id from task where id = i and (paused or held or max_parallel > 0 or exists (select from parked_step where task = i))
                   offset 0) t
    into v_task;
  if v_task is null then return p_wait; end if;
  insert into parked_step
  select w.key >> 14, w.queue, w.key, w.attempt from unnest(p_wait) w
   where w.key >> 14 = any(v_task) and (w.due is null or w.due <= p_at);
  with recursive q as (                          -- the queues of each task, one probe each
    select t.task, t.more, (select min(queue) from parked_step where task = t.task) queue
      from unnest(p_task, p_more) t(task, more) where t.task = any(v_task)
    union all
    select q.task, q.more, (select min(p.queue) from parked_step p where p.task = q.task and p.queue > q.queue)
      from q where q.queue is not null),
  room as (
    select q.task, q.queue,
           least(r.room, coalesce(q.more, 0) + (select count(*) from unnest(p_wait) w
                                                 where w.queue = q.queue and w.key >> 14 = q.task)) n
      from q, lateral (select case when paused or held then 0 when max_parallel = 0 then 1000000
                                   else greatest(max_parallel - running_n, 0) end room
                         from task where id = q.task offset 0) r
     where q.queue is not null),
  d as (
    delete from parked_step p where p.ctid = any(array(
      select x.ctid from room r, lateral (
        select ctid from parked_step where task = r.task and queue = r.queue order by task, queue, key limit r.n) x))
    returning p.queue, p.key, p.attempt)
  select array_agg((queue, key, attempt, null)::waiter order by key, attempt) from d into v_out;
  return v_out || array(select w from unnest(p_wait) w
                         where not (w.key >> 14 = any(v_task) and (w.due is null or w.due <= p_at)));
end $$;

-- Starts the clocks of steps of ruled tasks that became ready (p_wait, those not due later) or were leased at
-- once (p_leased).
--
-- Locks   nothing: the caller has the tasks.
create or replace function stepwell.start_clocks(
    p_task bigint[], p_wait stepwell.waiter[], p_leased bigint[], p_at timestamptz)
  returns void language plpgsql volatile set search_path = stepwell as $$
begin
  insert into timer (due, key, attempt, kind)
  select p_at + p.queue_timeout_ms * interval '1 ms', w.key, w.attempt, 1
    from unnest(p_wait) w,
         lateral (select p.queue_timeout_ms from step_template p
                   where p.definition = (select definition from task where id = w.key >> 14) and p.no = w.key & 16383 offset 0) p
   where w.key >> 14 = any(p_task) and (w.due is null or w.due <= p_at) and p.queue_timeout_ms is not null;
  with k as (
    select key from unnest(p_leased) key where key >> 14 = any(p_task)
    union
    select w.key from unnest(p_wait) w where w.key >> 14 = any(p_task)),
  u as (
    update step s set due = p_at + n.total_timeout_ms * interval '1 ms'
      from (select (select ctid from step where key = k.key and due is null) place, p.total_timeout_ms
              from k, lateral (select p.total_timeout_ms from step_template p
                                where p.definition = (select definition from task where id = k.key >> 14) and p.no = k.key & 16383
                                  and p.total_timeout_ms is not null offset 0) p) n
     where s.ctid = n.place
    returning s.due, s.key, s.attempt)
  insert into timer (due, key, attempt, kind) select due, key, attempt, 2 from u;
end $$;

-- Ruled tasks of which these steps are no longer in progress, and those are now: keeps their counts, and lets out
-- what there is room for, see gate. Tasks that ended give up their concurrency keys.
create or replace function stepwell.count_running(
    p_task bigint[], p_ended bigint[], p_leased bigint[], p_wait stepwell.waiter[], p_at timestamptz)
  returns stepwell.waiter[] language plpgsql volatile set search_path = stepwell as $$
declare
  v_task bigint[];
  v_more int[];
begin
  with n as (
    select t.task,
           (select count(*) from unnest(p_ended)  k where k >> 14 = t.task)::int ended,
           (select count(*) from unnest(p_leased) k where k >> 14 = t.task)::int leased
      from unnest(p_task) t(task)),
  u as (
    update task t set running_n = t.running_n - n.ended + n.leased
      from (select n.*, (select ctid from task where id = n.task) place from n) n
     where t.ctid = n.place
    returning t.id, n.ended),
  w as (                                          -- who waits for the keys of tasks that ended
    insert into concurrency_wake
    select t.concurrency from unnest(p_task) i, lateral (select concurrency, finished_at from task where id = i offset 0) t
     where t.concurrency is not null and t.finished_at is not null),
  p as (                                          -- what no longer held when they ended
    delete from parked_step
     where task = any(array(select i from unnest(p_task) i where (select finished_at is not null from task where id = i))))
  select array_agg(id), array_agg(ended) from u into v_task, v_more;
  return gate(v_task, v_more, p_wait, p_at);
end $$;
