-- Cancels a task and its unfinished steps at once. Leases that are running are void; their nodes are
-- told by signal rows.
--
-- Locks   the task, the append.
-- Answers the state the task was in: 1, 2 or 4 = it was moved; any other = it was left alone (5 = it
--         was cancelled before). Null: no such task. `told` = signals written.
create or replace function stepwell.cancel_task(
    p_uid uuid, p_reason text, p_actor text, p_at timestamptz default null, out was smallint, out told int)
  language plpgsql volatile set search_path = stepwell as $$
declare
  v_task bigint;
  v_at   timestamptz;
  v_ev   ev[];
  v_key  bigint[];
  v_node int[];
  v_session bigint[];
  v_token bigint[];
  v_attempt int[];
begin
  told := 0;
  select id from task where uid = p_uid for no key update into v_task;
  if v_task is null then return; end if;
  select state from task where id = v_task into was;
  if was not in (1, 2, 4) then return; end if;
  v_at := coalesce(p_at, clock_timestamp());
  with o as (
    select s.ctid place, s.key, s.state, s.attempt, s.node, s.session, s.token from step s
     where s.key between v_task << 14 and (v_task << 14) + 16383 and s.state in (1, 2, 4)),
  u as (
    update step s set state = 5, token = null, node = null, session = null
      from o where s.ctid = o.place
    returning o.*)
  select array_agg((v_task, key & 16383, 45, state, 5, attempt, null, null, p_reason, null)::ev order by key),
         array_agg(key)     filter (where state = 2), array_agg(node)    filter (where state = 2),
         array_agg(session) filter (where state = 2), array_agg(token)   filter (where state = 2),
         array_agg(attempt) filter (where state = 2)
    from u into v_ev, v_key, v_node, v_session, v_token, v_attempt;
  update task set state = 5, live_n = 0, failed_n = 0, finished_at = coalesce(finished_at, v_at) where id = v_task;
  -- The actor travels in front of the reason, as a JSON array of both.
  perform append(v_ev || (v_task, null, 24, was, 5, null, null, null, json_build_array(p_actor, p_reason)::text, null)::ev,
                 null, p_at);
  if v_key is not null then
    told := cardinality(v_key);
    insert into signal (node, session, key, token, attempt, reason)
    select node, session, key, token, attempt, p_reason
      from unnest(v_node, v_session, v_key, v_token, v_attempt) x(node, session, key, token, attempt);
  end if;
end $$;
