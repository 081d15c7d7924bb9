-- How tasks stand, for people: read by TaskService and by whoever asks with psql, never by a verb. They take the
-- ids of tasks, so that nothing is looked at but what belongs to these:
--
--   select * from stepwell.task_context('{0198c0de-0000-7000-8000-000000000001}');
--
-- A statement sees them at one moment; retries are due by now, or by p_at. Ids that do not exist have no rows, those
-- given twice have them once.

-- The keys of what waits behind steps in error or cancelled ones. A function of its own, and not one that is put in
-- the place of its call: so whoever looks for keys in it has them in a hash table, however large tables are.
create or replace function stepwell.blocked_steps(p_task uuid[]) returns setof bigint
  language sql stable rows 1000 set search_path = stepwell as $$
  with recursive behind(key) as (
    select (s.key & ~16383::bigint) | child
      from (select distinct unnest(p_task) uid) i,
           lateral (select id from task where uid = i.uid and failed_n + cancelled_n > 0 offset 0) t,
           lateral (select key, children from step
                     where key between t.id << 14 and (t.id << 14) + 16383 and state in (4, 5) offset 0) s,
           unnest(s.children) child
    union
    select (s.key & ~16383::bigint) | child
      from behind b, lateral (select key, children from step where key = b.key and state = 1 offset 0) s,
           unnest(s.children) child)
  select key from behind
$$;

-- The steps of tasks, in no order. `standing` says of a pending step why it has not been started:
--   ready        nothing is in its way but that a slot has to be free
--   parked       only its task is: paused (or its definition is), without its concurrency key, or at its limit of steps
--   backing_off  its retry waits for `not_before`
--   blocked      it waits behind a step in error or a cancelled one: nothing but a person lets it go on
--   waiting      it waits for other steps
-- and is null of others. `room` is how many steps the task may start now; null: any number.
create or replace function stepwell.step_readiness(p_task uuid[], p_at timestamptz default null)
  returns table (task uuid, definition int, task_state smallint, paused bool, held bool, room int,
                 no int, state smallint, standing text, waiting_on int, attempt int, max_attempts int,
                 not_before timestamptz, has_failed bool)
  language sql stable as $$
  with t as (
    select t.*, t.failed_n + t.cancelled_n > 0 broken,
           case when t.paused or t.held or t.state not in (1, 2) then 0
                when t.max_parallel > 0 then greatest(t.max_parallel - t.running_n, 0) end room
      from (select distinct unnest(p_task) uid) i,
           lateral (select id, uid, definition, state,
                           paused or (select d.paused from stepwell.definition d where d.id = definition) paused, held and finished_at is null held, max_parallel,
                           running_n, failed_n, cancelled_n
                      from stepwell.task where uid = i.uid offset 0) t)
  select t.uid, t.definition, t.state, t.paused, t.held, t.room,
         (s.key & 16383)::int, s.state,
         case when s.state <> 1 then null
              when s.waiting_on > 0 then case when t.broken and s.key in (select stepwell.blocked_steps(p_task))
                                              then 'blocked' else 'waiting' end
              when s.not_before > coalesce(p_at, statement_timestamp()) then 'backing_off'
              when t.room = 0 then 'parked'
              else 'ready' end,
         s.waiting_on, s.attempt, s.max_attempts,
         case when s.state = 1 and s.not_before > coalesce(p_at, statement_timestamp()) then s.not_before end,
         s.last_error is not null
    from t, lateral (select key, state, waiting_on, attempt, max_attempts, not_before, last_error from stepwell.step
                      where key between t.id << 14 and (t.id << 14) + 16383 offset 0) s
$$;

-- Tasks as wholes: how many steps stand how, and what that comes to. What the words mean stands with the enums
-- ExecutionStatus and Health of the contract; of conditions that hold together the first one counts.
-- `complete_steps` has those that were resolved too, `retrying_steps` are those under way that failed before.
create or replace function stepwell.task_context(p_task uuid[], p_at timestamptz default null)
  returns table (task uuid, definition int, state smallint, paused bool, held bool, room int,
                 total_steps int, pending_steps int, in_progress_steps int, complete_steps int, resolved_steps int,
                 error_steps int, cancelled_steps int, ready_steps int, parked_steps int, backing_off_steps int,
                 waiting_steps int, blocked_steps int, retrying_steps int,
                 execution_status text, health text, completion_percentage float8)
  language sql stable as $$
  select c.*,
         case when c.task_state = 3                              then 'all_complete'
              when c.task_state = 5                              then 'cancelled'
              when c.task_state = 6                              then 'resolved_manually'
              when c.ready_n > 0                                 then 'has_ready_steps'
              when c.in_progress_n > 0                           then 'processing'
              when c.paused and c.parked_n + c.backing_off_n > 0 then 'paused'
              when c.held and c.parked_n + c.backing_off_n > 0   then 'waiting_for_key'
              when c.backing_off_n > 0                           then 'backing_off'
              when c.error_n > 0                                 then 'blocked_by_failures'
              else                                                    'waiting_for_dependencies' end,
         case when c.task_state in (3, 5, 6)                     then 'healthy'
              when c.error_n + c.blocked_n > 0 and c.ready_n > 0 then 'recovering'
              when c.error_n + c.blocked_n > 0                   then 'blocked'
              when c.retrying_n > 0                              then 'recovering'
              else                                                    'healthy' end,
         trunc(100.0 * c.complete_n / c.total_n, 2)::float8
    from (select s.task, s.definition, s.task_state, s.paused, s.held, s.room,
                 count(*)::int                                             total_n,
                 (count(*) filter (where s.state = 1))::int                pending_n,
                 (count(*) filter (where s.state = 2))::int                in_progress_n,
                 (count(*) filter (where s.state in (3, 6)))::int          complete_n,
                 (count(*) filter (where s.state = 6))::int                resolved_n,
                 (count(*) filter (where s.state = 4))::int                error_n,
                 (count(*) filter (where s.state = 5))::int                cancelled_n,
                 (count(*) filter (where s.standing = 'ready'))::int       ready_n,
                 (count(*) filter (where s.standing = 'parked'))::int      parked_n,
                 (count(*) filter (where s.standing = 'backing_off'))::int backing_off_n,
                 (count(*) filter (where s.standing = 'waiting'))::int     waiting_n,
                 (count(*) filter (where s.standing = 'blocked'))::int     blocked_n,
                 (count(*) filter (where s.state in (1, 2) and s.has_failed))::int retrying_n
            from stepwell.step_readiness(p_task, p_at) s
           group by s.task, s.definition, s.task_state, s.paused, s.held, s.room) c
$$;
