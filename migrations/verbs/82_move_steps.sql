-- Moves steps by hand, from one of p_from to p_to: 1 retried, 5 cancelled, 6 resolved; and 4, timed out while
-- they wait. Children of resolved steps are released; tasks end, go on or are open again by their counts.
-- A step whose task is not pending, in progress or in error is left alone, and so is one to be retried that
-- waits behind a cancelled step. A step to be retried gets p_more attempts; null: as many as its plan says.
--
-- Internal: the caller has locked the tasks, and appends what is answered: v_ev, v_wait, and the signals to
-- the nodes that hold leases of the steps, void now.
create or replace function stepwell.moved(
    p_key bigint[], p_from smallint[], p_to smallint, p_type smallint, p_note text, p_more int, p_result text,
    p_at timestamptz,
    out m_key bigint[], out v_ev stepwell.ev[], out v_wait stepwell.waiter[], out v_void stepwell.voided[])
  language plpgsql volatile set search_path = stepwell as $$
declare
  m_waiting int[];
  m_was     smallint[];
  m_queue   int[];
  m_attempt int[];
  m_note    text[];
  f_key     bigint[];
  f_parent  bigint[];
  f_queue   int[];
  f_attempt int[];
  v_ruled   bigint[];
begin
  with o as (
    select s.*, (select p.max_attempts from step_template p
                  where p.definition = (select definition from task where id = s.key >> 14) and p.no = s.key & 16383) planned,
           case when p_to = 4 and right(p_note, 1) = '}' then left(p_note, -1) || ', "max_attempts": ' || s.max_attempts || '}'
                else p_note end failure
      from (select distinct key from unnest(p_key) key) i,
           lateral (select ctid place, key, state, waiting_on, attempt, max_attempts, queue, node, session, token
                      from step where key = i.key offset 0) s
     where s.state = any(p_from) and (select state in (1, 2, 4) from task where id = s.key >> 14)),
  u as (
    update step s set state = p_to, token = null, node = null, session = null,
           not_before   = case p_to when 1 then null else s.not_before end,
           max_attempts = case p_to when 1 then greatest(s.max_attempts, s.attempt + coalesce(p_more, o.planned))
                                    else s.max_attempts end,
           result       = case p_to when 6 then coalesce(p_result, 'null') else s.result end,
           last_error   = case p_to when 4 then o.failure else s.last_error end,
           due          = case p_to when 1 then null else s.due end
      from o where s.ctid = o.place
    returning o.*)
  select array_agg(key order by key), array_agg(waiting_on order by key), array_agg(state order by key),
         array_agg(queue order by key), array_agg(attempt order by key), array_agg(failure order by key),
         array_agg((node, session, key, token, attempt)::voided) filter (where state = 2)
    from u into m_key, m_waiting, m_was, m_queue, m_attempt, m_note, v_void;
  if m_key is null then return; end if;

  if p_to = 6 then
    with less as (
      select (p.key & ~16383::bigint) | child as key, count(*)::int n, max(p.key) parent
        from unnest(m_key) k, lateral (select key, children from step where key = k offset 0) p, unnest(p.children) child
       group by 1),
    f as (
      update step k set waiting_on = k.waiting_on - l.n
        from (select l.*, (select ctid from step where key = l.key) place from less l) l
       where k.ctid = l.place
      returning k.key, l.parent, k.queue, k.attempt, k.waiting_on = 0 and k.state = 1 free)
    select array_agg(key order by key), array_agg(parent order by key), array_agg(queue order by key),
           array_agg(attempt order by key)
      from f where free into f_key, f_parent, f_queue, f_attempt;
  end if;

  select array_agg((m.key >> 14, m.key & 16383, p_type, m.was, p_to, m.attempt, null, null, m.note, r.names)::ev order by m.key)
    from unnest(m_key, m_was, m_attempt, m_note) m(key, was, attempt, note)
    left join (select parent, array_agg((key & 16383)::int order by key) names
                 from unnest(f_key, f_parent) f(key, parent) group by parent) r on r.parent = m.key
    into v_ev;
  v_ev := v_ev || (
    select count_steps(array_agg(task), array_agg(live), array_agg(failed), array_agg(cancelled),
                       case when p_to <> 4 then p_note end, p_at)
      from (select key >> 14 task,
                   case when p_to = 1 then (waiting = 0)::int
                        when was = 2 or was = 1 and waiting = 0 then -1 else 0 end live,
                   (p_to = 4)::int - (was = 4)::int failed, (p_to = 5)::int cancelled
              from unnest(m_key, m_waiting, m_was) m(key, waiting, was)
            union all
            select key >> 14, 1, 0, 0 from unnest(f_key) f(key)) c);
  select array_agg(w order by (w).key) from (
      select (queue, key, attempt, null)::waiter w
        from unnest(m_key, m_waiting, m_queue, m_attempt) m(key, waiting, queue, attempt) where p_to = 1 and waiting = 0
      union all
      select (queue, key, attempt, null)::waiter from unnest(f_key, f_queue, f_attempt) f(key, queue, attempt)) x
    into v_wait;

  v_ruled := array(select distinct k >> 14 from unnest(m_key) k where (select ruled from task where id = k >> 14));
  if v_ruled <> '{}' then
    perform start_clocks(v_ruled, v_wait, null, p_at);
    v_wait := count_running(v_ruled, array(select key from unnest(m_key, m_was) m(key, was) where was = 2), null, v_wait, p_at);
  end if;
end $$;

-- Of these tasks, the steps that wait behind a cancelled one: they can never run. Nothing waits for a step
-- that is complete or resolved. Only tasks that have any are looked through.
create or replace function stepwell.behind_cancelled(p_task bigint[])
  returns bigint[] language sql stable set search_path = stepwell as $$
  with recursive b(key) as (
    select s.key & ~16383::bigint | child
      from (select t from unnest(p_task) t where (select cancelled_n > 0 from task where id = t) offset 0) i(t),
           lateral (select key, children from step
                     where key between t << 14 and (t << 14) + 16383 and state = 5 offset 0) s, unnest(s.children) child
    union
    select b.key & ~16383::bigint | child
      from b, lateral (select children from step where key = b.key and state not in (3, 6) offset 0) s,
           unnest(s.children) child)
  select array_agg(key) from b
$$;

-- One verb for what people do to single steps, and for time-outs of steps that wait: see moved.
--
-- Locks   tasks, the append.
-- Answers for each step (task's id and number) the states it and its task were in (null: there is none), whether
--         it was moved, and whether it waits behind a cancelled one; then how many steps became ready and
--         how many leases are void (their nodes are told by signals).
create or replace function stepwell.move_steps(
    p_uid uuid[], p_no int[], p_from smallint[], p_to smallint, p_type smallint, p_note text, p_reason text,
    p_more int default null, p_result text default null, p_at timestamptz default null,
    out s_was smallint[], out s_task smallint[], out s_moved bool[], out s_blocked bool[],
    out ready_n int, out told_n int)
  language plpgsql volatile set search_path = stepwell as $$
declare
  v_key    bigint[];
  v_behind bigint[];
  v_able   bigint[];
  v_at     timestamptz;
  m        record;
begin
  select array_agg(t.id << 14 | i.no order by i.place)
    from unnest(p_uid, p_no) with ordinality i(uid, no, place)
    left join lateral (select id from task where uid = i.uid offset 0) t on true
    into v_key;
  perform 1 from task where id = any(array(select distinct k >> 14 from unnest(v_key) k))
    order by id for no key update;
  v_at := coalesce(p_at, clock_timestamp());
  if p_to = 1 then
    v_behind := behind_cancelled(array(select distinct k >> 14 from unnest(v_key) k where k is not null));
  end if;
  v_able := array(select k from unnest(v_key) k where k is not null and not coalesce(k = any(v_behind), false));
  select array_agg(s.state order by i.place), array_agg(t.state order by i.place),
         array_agg(coalesce(i.key = any(v_behind), false) order by i.place)
    from unnest(v_key) with ordinality i(key, place)
    left join lateral (select state from step where key = i.key offset 0) s on true
    left join lateral (select state from task where id = i.key >> 14 offset 0) t on true
    into s_was, s_task, s_blocked;
  select * from moved(v_able, p_from, p_to, p_type, p_note, p_more, p_result, v_at) into m;
  perform append(m.v_ev, m.v_wait, p_at);
  perform signal_void(m.v_void, p_reason);
  s_moved := array(select coalesce(k = any(m.m_key), false) from unnest(v_key) with ordinality i(k, place) order by place);
  ready_n := coalesce(cardinality(m.v_wait), 0);
  told_n  := coalesce(cardinality(m.v_void), 0);
end $$;
