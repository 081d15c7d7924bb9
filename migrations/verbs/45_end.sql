-- What is needed when tasks end otherwise than complete: the numbers of the steps in error (at most 100)
-- for those in error; for those cancelled (a step of theirs is, and nothing can go on), the steps that
-- still wait, all behind cancelled ones, are cancelled with them.
--
-- Locks   nothing: the caller has the tasks.
-- Answers the events, those of steps before those of their tasks.
create or replace function stepwell.end_tasks(p_ev stepwell.ev[]) returns stepwell.ev[]
  language plpgsql volatile set search_path = stepwell as $$
declare
  v_behind ev[];
  v_ev     ev[];
begin
  with c as (
    update step s set state = 5
      from unnest(p_ev) e,
           lateral (select ctid place from step
                     where e.type = 24 and key between e.task << 14 and (e.task << 14) + 16383 and state = 1 offset 0) w
     where s.ctid = w.place
    returning s.key, s.attempt)
  select array_agg((key >> 14, key & 16383, 45, 1, 5, attempt, null, null,
                    '{"reason": "a step it waits for is cancelled"}', null)::ev order by key)
    from c into v_behind;
  if v_behind is not null then
    update task t set cancelled_n = t.cancelled_n + b.n
      from (select n, (select ctid from task where id = b.task) place
              from (select task, count(*)::int n from unnest(v_behind) group by task) b) b
     where t.ctid = b.place;
  end if;
  select array_agg((e.task, null, e.type, e.from_state, e.to_state, null, null, e.mark,
                    case when e.type = 24 then coalesce(e.text, '{"reason": "a step of it is cancelled, and nothing can go on"}') end,
                    s.numbers)::ev)
    from unnest(p_ev) e
    left join lateral (
      select (array_agg((key & 16383)::int order by key))[:100] numbers from step
       where key between e.task << 14 and (e.task << 14) + 16383 and state = 4) s on e.type = 23
    into v_ev;
  return v_behind || v_ev;
end $$;

-- Adds to the counts of tasks, and ends, keeps or re-opens each by them: something live = it goes on (one in
-- error is pending again); else steps in error = error; else cancelled ones = cancelled; else complete.
--
-- Locks   nothing: the caller has the tasks.
-- Answers the events of each task's way, edge by edge; p_note travels with those a person asked for.
create or replace function stepwell.count_steps(
    p_task bigint[], p_live int[], p_failed int[], p_cancelled int[], p_note text, p_at timestamptz)
  returns stepwell.ev[] language plpgsql volatile set search_path = stepwell as $$
declare
  v_ev  ev[];
  v_end ev[];
begin
  with u as (
    update task t set live_n = o.live, failed_n = o.failed, cancelled_n = o.cancelled, state = o.to_state,
           finished_at = case when o.to_state in (1, 2) then null
                              when o.from_state = 4 and o.to_state = 3 then p_at   -- it was open again on its way
                              else coalesce(t.finished_at, p_at) end,
           deadline    = case when o.from_state = 4 and o.to_state = 1 and t.deadline is not null
                              then p_at + (select deadline_ms from definition where id = t.definition) * interval '1 ms'
                              else t.deadline end,
           held        = t.held or t.concurrency is not null and o.from_state = 4 and o.to_state = 1
      from (select c.*, case when live > 0 then case from_state when 4 then 1 else from_state end
                             when failed > 0 then 4 when cancelled > 0 then 5 else 3 end::smallint to_state
              from (select t.ctid place, t.state from_state, t.live_n + d.live live,
                           t.failed_n + d.failed failed, t.cancelled_n + d.cancelled cancelled
                      from (select task, sum(live)::int live, sum(failed)::int failed, sum(cancelled)::int cancelled
                              from unnest(p_task, p_live, p_failed, p_cancelled) x(task, live, failed, cancelled)
                             group by task) d,
                           lateral (select ctid, * from task where id = d.task offset 0) t) c) o
     where t.ctid = o.place
    returning t.id, o.from_state, o.to_state, t.started_at, t.deadline, t.concurrency, t.definition),
  keys as (                                       -- and waits for its key again
    insert into concurrency (id, task, room)
    select concurrency, id, (select concurrency_room from definition where id = u.definition) from u
     where from_state = 4 and to_state = 1 and concurrency is not null
    on conflict (id, task) do update set granted = false
    returning id),
  wake as (insert into concurrency_wake select distinct id from keys),
  again as (                                      -- who is open again has its whole time again
    insert into timer (due, key, attempt, kind)
    select deadline, id << 14, 0, 3 from u where from_state = 4 and to_state = 1 and deadline is not null)
  select array_agg(e.ev order by u.id, e.i) filter (where not e.ending),
         array_agg(e.ev order by u.id)      filter (where e.ending)
    from u, lateral (values
      (1, (id, null, 25, 4, 1, null, null, null, p_note, null)::ev,              false, from_state = 4 and to_state in (1, 3)),
      (2, (id, null, 21, 1, 2, null, null, null, null, null)::ev,                false, from_state in (1, 4) and to_state = 3),
      (3, (id, null, 22, 2, 3, null, null, started_at, null, null)::ev,          false, to_state = 3),
      (4, (id, null, 23, from_state, 4, null, null, started_at, null, null)::ev, true,  from_state in (1, 2) and to_state = 4),
      (5, (id, null, 24, from_state, 5, null, null, null, p_note, null)::ev,     true,  to_state = 5)) e(i, ev, ending, taken)
   where e.taken
    into v_ev, v_end;
  if v_end is not null then v_ev := v_ev || end_tasks(v_end); end if;
  return v_ev;
end $$;
