-- Keeps facts with a task, a JSON object of texts, in place of those of the same name, and forgets those of p_remove, in
-- whatever state it is; unless it would have more than p_most then.
--
-- Locks   the task, the append.
-- Answers the state it is in (null: there is no such task), and whether it was changed.
create or replace function stepwell.annotate_task(
    p_uid uuid, p_set text, p_remove text[], p_most int, p_note text, p_at timestamptz default null,
    out t_was smallint, out t_done bool)
  language plpgsql volatile set search_path = stepwell as $$
declare
  v_task bigint;
  v_old  jsonb;
  v_all  jsonb;
begin
  t_done := false;
  select id from task where uid = p_uid for no key update into v_task;
  if v_task is null then return; end if;
  select state from task where id = v_task into t_was;
  select annotations, (annotations - p_remove) || p_set::jsonb from task_detail where task = v_task into v_old, v_all;
  t_done := (select count(*) from jsonb_object_keys(v_all)) <= p_most;
  if not t_done then return; end if;
  update task_detail set annotations = v_all where task = v_task;
  delete from task_annotation a
   using jsonb_each_text(v_old) o, lateral (
         select ctid place from task_annotation where name = o.key and text = o.value and task = v_task offset 0) p
   where a.ctid = p.place and v_all ->> o.key is distinct from o.value;
  insert into task_annotation
  select key, value, v_task from jsonb_each_text(v_all) where v_old ->> key is distinct from value;
  perform append(array[(v_task, null, 30, t_was, t_was, null, null, null, p_note, null)::ev], null, p_at);
end $$;

-- The same once; without a request, each time. What was refused is not remembered.
--
-- Locks   the request, the task, the append.
-- Answers whether it was done before (null: now; false: another request has this id, and nothing was done), and as
--         annotate_task.
create or replace function stepwell.annotate_task_once(
    p_request text, p_hash bytea, p_uid uuid, p_set text, p_remove text[], p_most int, p_note text,
    p_at timestamptz default null, out r_same bool, out t_was smallint, out t_done bool)
  language plpgsql volatile set search_path = stepwell as $$
declare
  v_answer json;
begin
  t_done := false;
  if p_request is not null then
    select * from seen_request(p_request, 6::smallint, p_hash, p_at) into r_same, v_answer;
  end if;
  if r_same then
    t_was  := v_answer -> 'was';
    t_done := true;
  elsif r_same is null then
    select a.t_was, a.t_done from annotate_task(p_uid, p_set, p_remove, p_most, p_note, p_at) a into t_was, t_done;
    if t_done and p_request is not null then
      insert into request values (p_request, 6, coalesce(p_at, clock_timestamp()), p_hash,
                                  json_build_object('was', t_was));
    end if;
  end if;
end $$;
