-- Requests that are done once: a repeat with the same id and content within 48 hours is answered what the first
-- one was, and changes nothing, whatever happened meanwhile. One that was refused is not remembered.

-- Keeps the partitions of `request` from two days back to tomorrow: those before are dropped, those that are
-- missing are made, apart, and attached. Answers how many it made and dropped.
--
-- Locks   the partitions, among those who make and drop them; not to be called after a look into `request`.
create or replace function stepwell.extend_request(p_at timestamptz default null)
  returns int language plpgsql volatile set search_path = stepwell as $$
declare
  v_today date := (coalesce(p_at, clock_timestamp()) at time zone 'UTC')::date;
  v_day   date;
  v_name  text;
  v_n     int  := 0;
  v_there date[];
begin
  for i in 1 .. 2 loop
    v_there := array(
      select to_date(substring(relname from 'request_([0-9]+)$'), 'YYYYMMDD')
        from pg_class c join pg_inherits i on i.inhrelid = c.oid where i.inhparent = 'request'::regclass);
    if v_there @> array[v_today, v_today + 1] and not v_today - 3 >= any(v_there) then return 0; end if;
    if i = 1 then perform pg_advisory_xact_lock(46); end if;   -- and look again
  end loop;
  foreach v_day in array v_there loop
    continue when v_day > v_today - 3;
    execute format('drop table %I', 'request_' || to_char(v_day, 'YYYYMMDD'));
    v_n := v_n + 1;
  end loop;
  foreach v_day in array array[v_today, v_today + 1] loop
    continue when v_day = any(v_there);
    v_name := 'request_' || to_char(v_day, 'YYYYMMDD');
    execute format('create table %I (like request including defaults including constraints)', v_name);
    execute format('alter table %I add primary key (id, method, at)', v_name);
    execute format('alter table request attach partition %I for values from (%L) to (%L)', v_name,
                   v_day::timestamp at time zone 'UTC', (v_day + 1)::timestamp at time zone 'UTC');
    v_n := v_n + 1;
  end loop;
  return v_n;
end $$;

-- What a request was answered before: whether it was the same (null: there was none), and the answer.
--
-- Locks   the id of the request, until the end of the transaction.
create or replace function stepwell.seen_request(
    p_request text, p_method smallint, p_hash bytea, p_at timestamptz, out r_same bool, out r_answer json)
  language plpgsql volatile set search_path = stepwell as $$
declare
  v_at timestamptz;
begin
  perform pg_advisory_xact_lock(p_method, hashtext(p_request));
  v_at := coalesce(p_at, clock_timestamp());
  if to_regclass('request_' || to_char(v_at at time zone 'UTC', 'YYYYMMDD')) is null then
    perform extend_request(v_at);
  end if;
  select hash = p_hash, answer from request
   where id = p_request and method = p_method and at > v_at - interval '48 hours'
   order by at desc limit 1
    into r_same, r_answer;
end $$;

-- Retries one task once, see retry_tasks.
--
-- Locks   the request, the task, the append.
-- Answers whether it was done before (null: now; false: another request has this id, and nothing was done), and
--         as retry_tasks.
create or replace function stepwell.retry_task_once(
    p_request text, p_hash bytea, p_uid uuid, p_note text, p_more int, p_at timestamptz default null,
    out r_same bool, out t_was smallint, out t_steps int, out ready_n int)
  language plpgsql volatile set search_path = stepwell as $$
declare
  v_answer json;
begin
  ready_n := 0;
  select * from seen_request(p_request, 1::smallint, p_hash, p_at) into r_same, v_answer;
  if r_same then
    t_was   := v_answer -> 'was';
    t_steps := v_answer -> 'steps';
  elsif r_same is null then
    select r.t_was[1], r.t_steps[1], r.ready_n from retry_tasks(array[p_uid], p_note, p_more, p_at) r
      into t_was, t_steps, ready_n;
    if t_was in (1, 2) or t_steps > 0 then
      insert into request values (p_request, 1, coalesce(p_at, clock_timestamp()), p_hash,
                                  json_build_object('was', t_was, 'steps', t_steps));
    end if;
  end if;
end $$;

-- Retries one step once, see move_steps.
--
-- Locks   the request, the task, the append.
-- Answers as retry_task_once, and as move_steps.
create or replace function stepwell.retry_step_once(
    p_request text, p_hash bytea, p_uid uuid, p_no int, p_note text, p_more int, p_at timestamptz default null,
    out r_same bool, out s_was smallint, out s_task smallint, out s_moved bool, out s_blocked bool, out ready_n int)
  language plpgsql volatile set search_path = stepwell as $$
declare
  v_answer json;
begin
  ready_n := 0; s_moved := false; s_blocked := false;
  select * from seen_request(p_request, 2::smallint, p_hash, p_at) into r_same, v_answer;
  if r_same then
    s_was     := v_answer -> 'was';
    s_task    := v_answer -> 'task';
    s_moved   := v_answer -> 'moved';
    s_blocked := v_answer -> 'blocked';
  elsif r_same is null then
    select r.s_was[1], r.s_task[1], r.s_moved[1], r.s_blocked[1], r.ready_n
      from move_steps(array[p_uid], array[p_no], '{4}', 1::smallint, 43::smallint, p_note, null, p_more, null, p_at) r
      into s_was, s_task, s_moved, s_blocked, ready_n;
    if s_moved or s_was in (1, 2) then
      insert into request values (p_request, 2, coalesce(p_at, clock_timestamp()), p_hash,
                                  json_build_object('was', s_was, 'task', s_task, 'moved', s_moved, 'blocked', s_blocked));
    end if;
  end if;
end $$;

-- Changes what is said of a task once, see update_task; without a request, each time.
--
-- Locks   the request, the task, the append.
-- Answers as retry_task_once, and as update_task.
create or replace function stepwell.update_task_once(
    p_request text, p_hash bytea, p_uid uuid, p_reason text, p_tags text[], p_priority smallint, p_note text,
    p_at timestamptz default null, out r_same bool, out t_was smallint, out queues_n int, out ready_n int)
  language plpgsql volatile set search_path = stepwell as $$
declare
  v_answer json;
begin
  queues_n := 0; ready_n := 0;
  if p_request is not null then
    select * from seen_request(p_request, 3::smallint, p_hash, p_at) into r_same, v_answer;
  end if;
  if r_same then
    t_was := v_answer -> 'was';
  elsif r_same is null then
    select u.t_was, u.queues_n, u.ready_n from update_task(p_uid, p_reason, p_tags, p_priority, p_note, p_at) u
      into t_was, queues_n, ready_n;
    if t_was is not null and p_request is not null then
      insert into request values (p_request, 3, coalesce(p_at, clock_timestamp()), p_hash,
                                  json_build_object('was', t_was));
    end if;
  end if;
end $$;

-- Changes a step once, see update_step; without a request, each time.
--
-- Locks   the request, the task, the append.
-- Answers as retry_task_once, and as update_step.
create or replace function stepwell.update_step_once(
    p_request text, p_hash bytea, p_uid uuid, p_no int, p_max_attempts int, p_config text, p_note text,
    p_at timestamptz default null,
    out r_same bool, out s_was smallint, out s_task smallint, out s_attempt int, out s_done bool)
  language plpgsql volatile set search_path = stepwell as $$
declare
  v_answer json;
begin
  s_done := false;
  if p_request is not null then
    select * from seen_request(p_request, 4::smallint, p_hash, p_at) into r_same, v_answer;
  end if;
  if r_same then
    s_was     := v_answer -> 'was';
    s_task    := v_answer -> 'task';
    s_attempt := v_answer -> 'attempt';
    s_done    := true;
  elsif r_same is null then
    select u.s_was, u.s_task, u.s_attempt, u.s_done from update_step(p_uid, p_no, p_max_attempts, p_config, p_note, p_at) u
      into s_was, s_task, s_attempt, s_done;
    if s_done and p_request is not null then
      insert into request values (p_request, 4, coalesce(p_at, clock_timestamp()), p_hash,
                                  json_build_object('was', s_was, 'task', s_task, 'attempt', s_attempt));
    end if;
  end if;
end $$;
