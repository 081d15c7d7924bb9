-- Changes what is said of a task: why it is, and its labels; null leaves it.
--
-- Locks   the task, the append.
-- Answers the state it is in; null: there is no such task.
create or replace function stepwell.update_task(
    p_uid uuid, p_reason text, p_tags text[], p_note text, p_at timestamptz default null, out t_was smallint)
  language plpgsql volatile set search_path = stepwell as $$
declare
  v_task bigint;
begin
  select id from task where uid = p_uid for no key update into v_task;
  if v_task is null then return; end if;
  select state from task where id = v_task into t_was;
  update task_detail set reason = coalesce(p_reason, reason), tags = coalesce(p_tags, tags) where task = v_task;
  perform append(array[(v_task, null, 27, t_was, t_was, null, null, null, p_note, null)::ev], null, p_at);
end $$;

-- Changes how many attempts a step may make that is pending or in error, if it has not made more, and its config;
-- null leaves either. An empty config is the definition's again.
--
-- Locks   the task, the append.
-- Answers the states it and its task were in (null: there is no such step), how many attempts it has made, and
--         whether it was changed.
create or replace function stepwell.update_step(
    p_uid uuid, p_no int, p_max_attempts int, p_config text, p_note text, p_at timestamptz default null,
    out s_was smallint, out s_task smallint, out s_attempt int, out s_done bool)
  language plpgsql volatile set search_path = stepwell as $$
declare
  v_task bigint;
begin
  s_done := false;
  select id from task where uid = p_uid for no key update into v_task;
  if v_task is null then return; end if;
  select state from task where id = v_task into s_task;
  update step set max_attempts = coalesce(p_max_attempts, max_attempts),
         config = case when p_config is null then config else nullif(p_config, '') end
   where key = v_task << 14 | p_no and state in (1, 4) and attempt <= coalesce(p_max_attempts, attempt)
     and s_task in (1, 2, 4);
  s_done := found;
  select state, attempt from step where key = v_task << 14 | p_no into s_was, s_attempt;
  if s_done then
    perform append(array[(v_task, p_no, 47, s_was, s_was, s_attempt, null, null, p_note, null)::ev], null, p_at);
  end if;
end $$;
