-- Tasks that fit a filter, and bulk operations on them.
--
-- A filter is a JSON object: lists `namespaces`, `definition_names`, `definition_versions`, `states` (numbers),
-- `tags`, `initiators`, `source_systems`; times `created_after` (inclusive), `created_before` (exclusive). What
-- is not there fits any task.

-- The newest tasks below the key p_before that fit: p_limit at most, out of p_scan at most that are looked at.
-- If only open ones can fit, only open ones are looked at. p_position: not those whose first event has a
-- higher position.
--
-- Answers their keys, newest first, and the key below which to go on; null: there are no more.
create or replace function stepwell.match_tasks(
    p_filter json, p_before bigint, p_scan int, p_limit int, p_position bigint,
    out m_task bigint[], out m_next bigint)
  language plpgsql stable set search_path = stepwell as $$
declare
  f_namespaces  text[]      := array(select json_array_elements_text(p_filter -> 'namespaces'));
  f_names       text[]      := array(select json_array_elements_text(p_filter -> 'definition_names'));
  f_states      smallint[]  := array(select json_array_elements_text(p_filter -> 'states')::smallint);
  f_tags        text[]      := array(select json_array_elements_text(p_filter -> 'tags'));
  f_after       timestamptz := p_filter ->> 'created_after';
  f_before      timestamptz := p_filter ->> 'created_before';
  f_initiators  text[]      := array(select json_array_elements_text(p_filter -> 'initiators'));
  f_systems     text[]      := array(select json_array_elements_text(p_filter -> 'source_systems'));
  v_versions    text[]      := array(select json_array_elements_text(p_filter -> 'definition_versions'));
  v_definitions int[];
  v_open        bool        := f_states <> '{}' and f_states <@ '{1,2}'::smallint[];
  v_detail      bool        := f_tags <> '{}' or f_initiators <> '{}' or f_systems <> '{}'
                               or coalesce(f_after, f_before) is not null or p_position is not null;
begin
  m_task := '{}';
  if f_namespaces <> '{}' or f_names <> '{}' or v_versions <> '{}' then
    v_definitions := array(
      select id from definition
       where (f_namespaces = '{}' or namespace = any(f_namespaces))
         and (f_names = '{}' or name = any(f_names))
         and (v_versions = '{}' or array_to_string(version, '.') = any(v_versions)));
    if v_definitions = '{}' then return; end if;
  end if;
  select coalesce(array_agg(id order by id desc), '{}') from (
      select t.id
        from ((select id, definition, state from task where v_open and finished_at is null and id < p_before
                order by id desc limit p_scan)
              union all
              (select id, definition, state from task where not v_open and id < p_before
                order by id desc limit p_scan)) t
       where (v_definitions is null or t.definition = any(v_definitions))
         and (f_states = '{}' or t.state = any(f_states))
         and (not v_detail or (
              select d.tags @> f_tags
                     and (f_initiators = '{}' or d.initiator = any(f_initiators))
                     and (f_systems = '{}' or d.source_system = any(f_systems))
                     and (f_after is null or d.created_at >= f_after)
                     and (f_before is null or d.created_at < f_before)
                     and (p_position is null or d.first_position <= p_position)
                from task_detail d where d.task = t.id))
       order by t.id desc limit p_limit) m
    into m_task;
  if cardinality(m_task) = p_limit then
    m_next := m_task[p_limit];
  elsif v_open then
    select case when count(*) = p_scan then min(id) end
      from (select id from task where finished_at is null and id < p_before order by id desc limit p_scan) t into m_next;
  else
    select case when count(*) = p_scan then min(id) end
      from (select id from task where id < p_before order by id desc limit p_scan) t into m_next;
  end if;
end $$;

-- Starts a bulk operation on the tasks there are now, unless p_most are running or its id was used before.
--
-- Locks   starts of operations, among themselves.
-- Answers 1 started, 2 it is there already, 3 another one has this id, 4 too many are running.
create or replace function stepwell.start_bulk(
    p_id uuid, p_action smallint, p_override bool, p_attempts int, p_filter text, p_note text, p_most int,
    p_at timestamptz default null)
  returns smallint language plpgsql volatile set search_path = stepwell as $$
declare
  v_same bool;
begin
  perform pg_advisory_xact_lock(48);
  select (action, override, attempts, filter, note)
         is not distinct from (p_action, p_override, p_attempts, p_filter, p_note)
    from bulk_operation where id = p_id into v_same;
  if v_same is not null then return case when v_same then 2 else 3 end; end if;
  if (select count(*) from bulk_operation where ended_at is null) >= p_most then return 4; end if;
  insert into bulk_operation (id, action, override, attempts, filter, note, position, place, created_at)
  values (p_id, p_action, p_override, p_attempts, p_filter, p_note,
          -- Keys are drawn in blocks: a task that comes later may have a lower key, but not a lower position.
          (select case when is_called then last_value else 0 end from position),
          (select coalesce(max(id), 0) + 1 from task), coalesce(p_at, clock_timestamp()));
  return 1;
end $$;

-- The next chunk of a bulk operation: at most p_chunk tasks that fit, out of a hundred times as many that are
-- looked at. Its place moves in the same transaction, so no task has two turns. Nothing is done if another
-- is at it, or it has ended.
--
-- Locks   the operation (SKIP LOCKED), tasks, the append.
-- Answers whether it was its turn, how many tasks fitted and how many of them were moved; then how many steps
--         became ready, and how many leases are void (their nodes are told by signals); then its action (null: it
--         was not its turn), and whether it is done now.
create or replace function stepwell.run_bulk(
    p_id uuid, p_chunk int, p_at timestamptz default null,
    out b_ran bool, out b_matched int, out b_moved int, out ready_n int, out told_n int,
    out b_action smallint, out b_done bool)
  language plpgsql volatile set search_path = stepwell as $$
declare
  b        bulk_operation;
  m        record;
  r        record;
  f_states smallint[];
  v_uid    uuid[];
begin
  b_ran := false; b_matched := 0; b_moved := 0; ready_n := 0; told_n := 0; b_done := false;
  perform 1 from bulk_operation where id = p_id and state = 1 for update skip locked;
  if not found then return; end if;
  b_ran := true;
  select * from bulk_operation where id = p_id into b;
  b_action := b.action;
  f_states := array(select json_array_elements_text(b.filter::json -> 'states')::smallint);

  select * from match_tasks(b.filter::json, b.place, p_chunk * 100, p_chunk, b.position) into m;
  perform 1 from task where id = any(m.m_task) order by id for no key update;
  -- Of what a filter looks at, only the state changes.
  v_uid := array(
    select t.uid from unnest(m.m_task) i, lateral (select id, uid, state from task where id = i offset 0) t
     where f_states = '{}' or t.state = any(f_states) order by t.id);
  b_matched := cardinality(v_uid);
  if b_matched > 0 then
    case b.action
      when 1 then
        select * from cancel_tasks(v_uid, b.override, b.note, b.note::json ->> 'reason', p_at) into r;
        b_moved := (select count(*) from unnest(r.t_was) was where was in (1, 2, 4) or b.override and was in (3, 6));
        told_n  := r.told_n;
      when 2 then
        select * from retry_tasks(v_uid, b.note, b.attempts, p_at) into r;
        b_moved := (select count(*) from unnest(r.t_steps) n where n > 0);
        ready_n := r.ready_n;
      when 3 then
        b_moved := (select count(*) from unnest(resolve_tasks(v_uid, b.note, p_at)) was where was = 4);
    end case;
  end if;
  b_done := m.m_next is null;
  update bulk_operation
     set place = coalesce(m.m_next, 0), matched_n = matched_n + b_matched, moved_n = moved_n + b_moved,
         state = case when b_done then 2 else 1 end,
         ended_at = case when b_done then coalesce(p_at, clock_timestamp()) end
   where id = p_id;
end $$;
