-- Stores tasks like create_tasks, but of those with the same t_identity only one within t_window_ms of its creation
-- (null: as long as it is kept); those without one as ever. Which task has a key is decided under the lock of its
-- row, and the rows of all keys are locked in one order before any task.
--
-- Locks   the rows of the keys (sorted), then as create_tasks.
-- Answers as create_tasks, and for each task the uid of the one that is there in its place: null for those that were
--         made, or whose own uid is taken.
create or replace function stepwell.create_identified_tasks(
    t_identity uuid[], t_window_ms bigint[],
    t_id bigint[], t_uid uuid[], t_definition int[], t_hash bytea[], t_context text[],
    t_initiator text[], t_source_system text[], t_reason text[], t_tags text[], t_trace bytea[],
    t_skipped text[], t_concurrency bigint[], t_room int[], t_priority smallint[], t_correlation text[],
    p_at timestamptz default null, t_annotations text[] default null,
    out n_key bigint[], out n_at timestamptz, out queues_n int, out t_there uuid[])
  language plpgsql volatile set search_path = stepwell as $$
declare
  v_at    timestamptz;
  v_taken uuid[];
  v_there bigint[];
  v_first int[];
  v_go    int[];
  v_uid   uuid[];
  v_moved uuid[];
begin
  -- A key that nobody has is of the first who asks for it; the row of one that somebody has is only locked.
  insert into identity as i (key, task)
  select distinct on (key) key, task from unnest(t_identity, t_id) with ordinality t(key, task, no)
   where key is not null order by key, no
  on conflict (key) do update set task = i.task where false;

  -- Who repeats a request with its uid is answered by that, and takes no key.
  v_at    := coalesce(p_at, clock_timestamp());
  v_taken := array(select uid from unnest(t_uid) u, lateral (select uid from task where uid = u offset 0) t);
  v_there := array(
    select (select d.task from identity i, lateral (select task, created_at from task_detail where task = i.task offset 0) d
             where i.key = t.key and t.uid <> all(v_taken)
               and (t.window_ms is null or d.created_at > v_at - t.window_ms * interval '1 ms'))
      from unnest(t_identity, t_uid, t_window_ms) with ordinality t(key, uid, window_ms, no) order by no);
  -- Of those with one key that find no task the first makes it, and it is the others' too.
  v_first := array(
    select case when key is null or there is not null or uid = any(v_taken) then no
                else min(no) filter (where there is null and uid <> all(v_taken)) over (partition by key) end::int
      from unnest(t_identity, t_uid, v_there) with ordinality t(key, uid, there, no) order by no);
  -- One whose uid was there is not tried: its task may be going away, and its key was not looked at.
  v_go    := array(select no::int from unnest(v_there, v_first, t_uid) with ordinality t(there, first, uid, no)
                    where there is null and first = no and uid <> all(v_taken) order by no);

  -- What can be is looked up and written here, before the append: whose the tasks are that are there, and which keys go
  -- over from another task. A key that nobody goes on with may be nobody's.
  v_uid   := array(select (select uid from task where id = there) from unnest(v_there) with ordinality t(there, no) order by no);
  v_moved := array(select key from unnest(v_go) no, lateral (select t_identity[no] key, t_id[no] id) t
                    where exists (select from identity i where i.key = t.key and i.task <> t.id));
  delete from identity i where key = any(t_identity) and not exists (select from unnest(v_go) no where t_identity[no] = key)
     and not exists (select from task where id = i.task);

  select c.n_key, c.n_at, c.queues_n
    from create_tasks(
      array(select t_id[i] from unnest(v_go) i), array(select t_uid[i] from unnest(v_go) i),
      array(select t_definition[i] from unnest(v_go) i), array(select t_hash[i] from unnest(v_go) i),
      array(select t_context[i] from unnest(v_go) i), array(select t_initiator[i] from unnest(v_go) i),
      array(select t_source_system[i] from unnest(v_go) i), array(select t_reason[i] from unnest(v_go) i),
      array(select t_tags[i] from unnest(v_go) i), array(select t_trace[i] from unnest(v_go) i),
      array(select t_skipped[i] from unnest(v_go) i), array(select t_concurrency[i] from unnest(v_go) i),
      array(select t_room[i] from unnest(v_go) i), array(select t_priority[i] from unnest(v_go) i),
      array(select t_correlation[i] from unnest(v_go) i), p_at,
      case when t_annotations is not null then array(select t_annotations[i] from unnest(v_go) i) end) c
    into n_key, n_at, queues_n;

  -- Each key is of the task that was made for it; one whose task was not made is nobody's.
  if v_moved <> '{}' then
    update identity i set task = t.id from unnest(t_identity, t_id) t(key, id)
     where i.key = any(v_moved) and i.key = t.key and t.id = any(n_key) and i.task <> t.id;
  end if;
  if coalesce(cardinality(n_key), 0) < cardinality(v_go) then
    delete from identity i where key = any(t_identity) and not exists (select from task where id = i.task);
  end if;
  t_there := array(
    select coalesce(there, case when first <> no and t_id[first] = any(n_key) then t_uid[first] end)
      from unnest(v_uid, v_first) with ordinality t(there, first, no) order by no);
end $$;
