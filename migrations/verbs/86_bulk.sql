-- Tasks that fit a filter, and bulk operations on them.
--
-- A filter is a JSON object that `services/store/src/filter.rs` makes of what a person wrote. What is not there fits
-- any task, and all that is there must fit:
--   nothing                      true: no task fits
--   ids, correlation_ids, initiators, source_systems
--                                lists: it has one of these
--   states                       a list of numbers: it is in one of these
--   tags                         a list: it has all of these
--   annotations                  a list of lists of two, name and text: it has all of these
--   created_from, created_until  times: it was created then or later; before then
--   ended_from, ended_until      the same of its end
--   definition                   a jsonpath over namespace, definition_name and definition_version
--   fits                         a jsonpath over the whole task, see fit_tasks
--   wants_definition, wants_times, wants_annotations
--                                true: `fits` looks at what is its definition's, at its times, at its annotations
--   statuses, healths            lists of words: how it stands, see task_context
-- Paths are data like all the rest: no text of a filter is part of a statement.

-- The definitions whose tasks may fit; null: any.
create or replace function stepwell.fit_definitions(p_filter json) returns int[]
  language plpgsql stable set search_path = stepwell as $$
declare
  v_path jsonpath := p_filter ->> 'definition';
begin
  if v_path is null then return null; end if;
  return array(
    select id from definition
     where jsonb_path_match(jsonb_build_object(
             'namespace', namespace, 'definition_name', name, 'definition_version', array_to_string(version, '.')), v_path));
end $$;

-- Those of tasks, given by their keys, that fit, in the order they are given; but for how they stand.
-- p_position: not those whose first event has a higher position.
create or replace function stepwell.fit_tasks(p_filter json, p_definitions int[], p_task bigint[], p_position bigint)
  returns bigint[] language plpgsql stable set search_path = stepwell as $$
declare
  f_ids          uuid[]      := array(select json_array_elements_text(p_filter -> 'ids')::uuid);
  f_states       smallint[]  := array(select json_array_elements_text(p_filter -> 'states')::smallint);
  f_tags         text[]      := array(select json_array_elements_text(p_filter -> 'tags'));
  f_annotations  jsonb       := jsonb_object(array(
                                  select array[a ->> 0, a ->> 1] from json_array_elements(p_filter -> 'annotations') a));
  f_correlations text[]      := array(select json_array_elements_text(p_filter -> 'correlation_ids'));
  f_initiators   text[]      := array(select json_array_elements_text(p_filter -> 'initiators'));
  f_systems      text[]      := array(select json_array_elements_text(p_filter -> 'source_systems'));
  f_from         timestamptz := p_filter ->> 'created_from';
  f_until        timestamptz := p_filter ->> 'created_until';
  f_ended_from   timestamptz := p_filter ->> 'ended_from';
  f_ended_until  timestamptz := p_filter ->> 'ended_until';
  v_path         jsonpath    := p_filter ->> 'fits';
  v_times        bool        := coalesce((p_filter ->> 'wants_times')::bool, false);
  v_definition   bool        := coalesce((p_filter ->> 'wants_definition')::bool, false);
  v_annotations  bool        := coalesce((p_filter ->> 'wants_annotations')::bool, false);
  v_detail       bool        := f_tags <> '{}' or f_annotations <> '{}' or f_correlations <> '{}' or f_initiators <> '{}'
                                or f_systems <> '{}' or coalesce(f_from, f_until) is not null or v_path is not null
                                or p_position is not null;
begin
  if p_filter ->> 'nothing' is not null then return '{}'; end if;
  return array(
    select u.id
      from unnest(p_task) with ordinality u(id, place),
           lateral (select id, uid, definition, state, started_at, finished_at, deadline, paused, held
                      from task where id = u.id offset 0) t
     where (p_definitions is null or t.definition = any(p_definitions))
       and (f_states = '{}' or t.state = any(f_states))
       and (f_ids = '{}' or t.uid = any(f_ids))
       and (f_ended_from is null or t.finished_at >= f_ended_from)
       and (f_ended_until is null or t.finished_at < f_ended_until)
       and (not v_detail or exists (
            select from task_detail d
             where d.task = u.id
               and d.tags @> f_tags
               and (f_annotations = '{}' or d.annotations @> f_annotations)
               and (f_correlations = '{}' or d.correlation_id = any(f_correlations))
               and (f_initiators = '{}' or d.initiator = any(f_initiators))
               and (f_systems = '{}' or d.source_system = any(f_systems))
               and (f_from is null or d.created_at >= f_from)
               and (f_until is null or d.created_at < f_until)
               and (p_position is null or d.first_position <= p_position)
               and case when v_path is null then true else jsonb_path_match(
                     jsonb_build_object(
                       'task_id', t.uid, 'state', t.state, 'priority', d.priority, 'tags', d.tags,
                       'initiator', d.initiator, 'source_system', d.source_system, 'reason', d.reason,
                       'correlation_id', d.correlation_id, 'paused', t.paused, 'held', t.held and t.finished_at is null)
                     || case when v_annotations then jsonb_build_object('annotations', d.annotations) else '{}' end
                     || case when v_times then jsonb_build_object(
                          'create_time', microseconds(d.created_at), 'start_time', microseconds(t.started_at),
                          'end_time', microseconds(t.finished_at), 'deadline', microseconds(t.deadline)) else '{}' end
                     || case when v_definition then (
                          select jsonb_build_object('namespace', namespace, 'definition_name', name,
                                                    'definition_version', array_to_string(version, '.'))
                            from definition where id = t.definition) else '{}' end, v_path) end))
     order by u.place);
end $$;

-- A time as a number, which a jsonpath can compare.
create or replace function stepwell.microseconds(p_at timestamptz) returns bigint
  language sql stable parallel safe as $$ select (extract(epoch from p_at) * 1000000)::bigint $$;

-- Those of tasks, given by their keys, that stand as a filter wants it, in the order they are given: of as many of
-- the first ones as have p_steps steps together, but of one at least. `looked_n`: how many that were.
create or replace function stepwell.stand_tasks(
    p_filter json, p_task bigint[], p_steps int, out m_task bigint[], out looked_n int)
  language plpgsql stable set search_path = stepwell as $$
declare
  f_statuses text[] := array(select json_array_elements_text(p_filter -> 'statuses'));
  f_healths  text[] := array(select json_array_elements_text(p_filter -> 'healths'));
  v_uid      uuid[];
begin
  select coalesce(array_agg(uid order by place), '{}') from (
      select t.uid, u.place,
             sum(coalesce((select no + 1 from step_template where definition = t.definition order by no desc limit 1), 0))
               over (order by u.place) steps
        from unnest(p_task) with ordinality u(id, place),
             lateral (select uid, definition from task where id = u.id offset 0) t) s
   where steps <= p_steps or place = 1
    into v_uid;
  looked_n := cardinality(v_uid);
  m_task := array(
    select u.id
      from task_context(v_uid) c join unnest(v_uid, p_task[:looked_n]) with ordinality u(uid, id, place) on u.uid = c.task
     where (f_statuses = '{}' or c.execution_status = any(f_statuses))
       and (f_healths = '{}' or c.health = any(f_healths))
     order by u.place);
end $$;

-- The first tasks after a place that fit: p_limit at most, out of about p_scan at most that are looked at, and of
-- those that have p_steps steps together where it is asked how they stand. Orders:
--   0  by key, highest first
--   1  by their creation, latest first; where nothing else is wanted, and close enough to it, by key
--   2  the same, earliest first
--   3  those that have ended by their end, latest first
--   4  the same, earliest first
-- What is looked at is the most that leads to few tasks; the first of these that the filter has:
--   ids; correlation_ids; annotations; tags, once `task_tag` has all of them; created_from; states, if all of them are
--   open, in error or resolved; definitions, if they are 100 at most; created_until; else any tasks.
-- The place is a key, and for orders by times a time too. What leads may be another thing at the next page, because
-- definitions came or went: a place that was left by its key has the time of the task there. p_position as in
-- fit_tasks.
--
-- Answers their keys, in their order, and the place after which to go on; null: there are no more.
create or replace function stepwell.match_tasks(
    p_filter json, p_order int, p_at timestamptz, p_key bigint, p_scan int, p_limit int, p_steps int, p_position bigint,
    out m_task bigint[], out m_at timestamptz, out m_next bigint)
  language plpgsql stable set search_path = stepwell as $$
declare
  f_states      int[]       := array(select json_array_elements_text(p_filter -> 'states')::int);
  f_from        timestamptz := coalesce(p_filter ->> 'created_from', '-infinity');
  f_until       timestamptz := coalesce(p_filter ->> 'created_until', 'infinity');
  v_derived     bool        := coalesce(p_filter -> 'statuses', p_filter -> 'healths') is not null;
  v_definitions int[]       := fit_definitions(p_filter);
  v_source      text;
  v_timed       bool        := false;
  v_streams     int         := 1;
  v_left        int         := p_scan;
  v_n           int         := case when v_derived then 1000 else greatest(2 * p_limit, 200) end;
  v_seen        bigint[];
  v_fit         bigint[];
  v_stand       bigint[];
  v_end         bigint;
  v_looked      int;
begin
  m_task := '{}';
  if p_filter ->> 'nothing' is not null or v_definitions = '{}' then return; end if;
  if p_order in (3, 4) then
    v_timed  := true;
    v_source := 'select 0 k, id from task
                  where finished_at is not null and (finished_at, id) < ($2, $3)
                    and finished_at >= $6 and finished_at < $7
                  order by finished_at desc, id desc limit $4';
    f_from   := coalesce(p_filter ->> 'ended_from', '-infinity');
    f_until  := coalesce(p_filter ->> 'ended_until', 'infinity');
  elsif p_filter -> 'ids' is not null then
    v_source := 'select 0 k, id from task
                  where uid = any(array(select json_array_elements_text($1 -> ''ids'')::uuid)) and id < $3
                  order by id desc limit $4';
  elsif p_filter -> 'correlation_ids' is not null then
    v_streams := json_array_length(p_filter -> 'correlation_ids');
    v_source := 'select k, id from unnest(array(select json_array_elements_text($1 -> ''correlation_ids''))) k,
                        lateral (select task id from task_detail where correlation_id = k and task < $3
                                  order by correlation_id desc, task desc limit $4) s';
  elsif p_filter -> 'annotations' is not null then
    v_source := 'select 0 k, task id from task_annotation
                  where name = $1 -> ''annotations'' -> 0 ->> 0 and text = $1 -> ''annotations'' -> 0 ->> 1 and task < $3
                  order by name desc, text desc, task desc limit $4';
  elsif p_filter -> 'tags' is not null and not exists (select from task_untagged) then
    v_source := 'select 0 k, task id from task_tag where tag = $1 -> ''tags'' ->> 0 and task < $3
                  order by tag desc, task desc limit $4';
  elsif p_order <> 0 and p_filter -> 'created_from' is not null then
    v_timed := true;
  elsif f_states <> '{}' and f_states <@ '{1,2,4,6}' then
    v_streams := (f_states && '{1,2}')::int + (f_states && '{4,6}')::int;
    v_source := concat_ws(' union all ',
      case when f_states && '{1,2}' then
        '(select 1 k, id from task where finished_at is null and id < $3 order by id desc limit $4)' end,
      case when f_states && '{4,6}' then
        '(select 2 k, id from task where finished_at is not null and failed_n > 0 and id < $3 order by id desc limit $4)' end);
  elsif cardinality(v_definitions) <= 100 then
    v_streams := cardinality(v_definitions);
    v_source := 'select k, id from unnest($5) k,
                        lateral (select id from task where definition = k and id < $3
                                  order by definition desc, id desc limit $4) s';
  elsif p_order <> 0 and p_filter -> 'created_until' is not null then
    v_timed := true;
  else
    v_source := 'select 0 k, id from task where id < $3 order by id desc limit $4';
  end if;
  if v_timed and p_order < 3 then
    v_source := 'select 0 k, task id from task_detail
                  where (created_at, task) < ($2, $3) and created_at >= $6 and created_at < $7
                  order by created_at desc, task desc limit $4';
  end if;
  m_next := coalesce(p_key, case when p_order in (2, 4) then -1 else 9223372036854775807 end);
  m_at   := coalesce(p_at, case when p_order in (2, 4) then '-infinity' else 'infinity' end::timestamptz);
  if v_timed and p_key is not null and p_at is null then
    case p_order
      when 1 then select created_at from task_detail where task <= p_key order by task desc limit 1 into m_at;
      when 2 then select created_at from task_detail where task >= p_key order by task limit 1 into m_at;
      else        select finished_at from task where id = p_key into m_at;
    end case;
  end if;
  -- What the times exclude is not gone through: an index is entered at the place, whatever else is asked of it.
  if v_timed and p_order in (1, 3) and m_at > f_until then
    m_at   := f_until;
    m_next := -1;
  elsif v_timed and p_order in (2, 4) and m_at < f_from then
    m_at   := f_from;
    m_next := -1;
  end if;
  if p_order in (2, 4) then
    v_source := replace(replace(replace(v_source, ' desc', ' asc'), 'id < $3', 'id > $3'), 'task < $3', 'task > $3');
    v_source := replace(replace(v_source, 'task) < (', 'task) > ('), 'id) < (', 'id) > (');
  end if;

  loop
    v_n := least(v_n, v_left);
    -- Of several streams only what all of them have come to is complete.
    execute format(
      'with c as materialized (select *, row_number() over () n from (%1$s) s),
            f as (select %2$s(f) f from (select %3$s(id) f from c group by k having count(*) >= $4) x)
       select array(select id from c, f where f is null or not %4$s or id %5$s f %6$s), f from f',
      v_source,
      case when p_order = 2 then 'min' else 'max' end, case when p_order in (2, 4) then 'max' else 'min' end,
      (v_streams > 1)::text, case when p_order = 2 then '<=' else '>=' end,
      case when v_timed then 'order by n' when p_order = 2 then 'order by id' else 'order by id desc' end)
      using p_filter, m_at, m_next, greatest(v_n / v_streams, 1), v_definitions, f_from, f_until
      into v_seen, v_end;
    -- In the order of times the last one is the place, whatever its key.
    if v_timed and v_end is not null then v_end := v_seen[cardinality(v_seen)]; end if;
    v_left := v_left - v_n;
    v_fit  := fit_tasks(p_filter, v_definitions, v_seen, p_position);
    if v_derived and v_fit <> '{}' then
      -- One look at how tasks stand is what a page has.
      v_left := 0;
      select * from stand_tasks(p_filter, v_fit[:1000], p_steps) into v_stand, v_looked;
      if v_looked < cardinality(v_fit) then v_end := v_fit[v_looked]; end if;
      v_fit := v_stand;
    end if;
    m_task := m_task || v_fit;
    if cardinality(m_task) >= p_limit then
      m_task := m_task[:p_limit];
      v_end  := m_task[p_limit];
    end if;
    m_next := v_end;
    if v_timed and v_end is not null then
      if p_order in (3, 4) then select finished_at from task where id = v_end into m_at;
      else select created_at from task_detail where task = v_end into m_at; end if;
    end if;
    exit when v_end is null or v_left <= 0 or cardinality(m_task) >= p_limit;
    v_n := v_n * 4;
  end loop;
  if not v_timed or m_next is null then m_at := null; end if;
end $$;

-- Starts a bulk operation on the tasks there are now, unless p_most are running or its id was used before. p_filter
-- is what p_written means now.
--
-- Locks   starts of operations, among themselves.
-- Answers 1 started, 2 it is there already, 3 another one has this id, 4 too many are running.
create or replace function stepwell.start_bulk(
    p_id uuid, p_action smallint, p_override bool, p_attempts int, p_filter text, p_written text, p_note text, p_most int,
    p_at timestamptz default null)
  returns smallint language plpgsql volatile set search_path = stepwell as $$
declare
  v_same bool;
begin
  perform pg_advisory_xact_lock(48);
  select (action, override, attempts, written, note)
         is not distinct from (p_action, p_override, p_attempts, p_written, p_note)
    from bulk_operation where id = p_id into v_same;
  if v_same is not null then return case when v_same then 2 else 3 end; end if;
  if (select count(*) from bulk_operation where ended_at is null) >= p_most then return 4; end if;
  insert into bulk_operation (id, action, override, attempts, filter, written, note, position, place, created_at)
  values (p_id, p_action, p_override, p_attempts, p_filter, p_written, p_note,
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
  v_uid    uuid[];
begin
  b_ran := false; b_matched := 0; b_moved := 0; ready_n := 0; told_n := 0; b_done := false;
  perform 1 from bulk_operation where id = p_id and state = 1 for update skip locked;
  if not found then return; end if;
  b_ran := true;
  select * from bulk_operation where id = p_id into b;
  b_action := b.action;
  select * from match_tasks(b.filter::json, 0, null, b.place, p_chunk * 100, p_chunk, 0, b.position) into m;
  perform 1 from task where id = any(m.m_task) order by id for no key update;
  -- What moved while it was waited for fits no longer.
  v_uid := array(
    select t.uid from unnest(fit_tasks(b.filter::json, fit_definitions(b.filter::json), m.m_task, null)) i,
                      lateral (select id, uid from task where id = i offset 0) t
     order by t.id);
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
