-- Custom events that do not come with an outcome. Each is a row of the log (100 about a step, 101 about a task) whose
-- states are both that of its entity, and whose text is `name@version {data}`. What may be published is decided before:
-- here it is only written.

-- Publishes events of leases: p_text[i] belongs to publication p_of[i] (from 1), whose lease is p_key, p_token and
-- p_attempt, and which has p_number among all of this lease. What comes again with a number that was taken is published
-- already; each lease's numbers come in their order.
--
-- Locks   the tasks, the append.
-- Answers a_status for each publication (1 it is durable, now or from before; 0 the lease is lost).
create or replace function stepwell.publish_steps(
    p_key bigint[], p_token bigint[], p_attempt int[], p_number int[], p_of int[], p_text text[],
    p_at timestamptz default null, out a_status smallint[])
  language plpgsql volatile set search_path = stepwell as $$
declare
  v_new int[];
  v_ev  ev[];
begin
  perform 1 from task where id = any(array(select distinct k >> 14 from unnest(p_key) k)) order by id for no key update;
  select array_agg(case when s.state = 2 and s.token = i.token and s.attempt = i.attempt
                          or i.number <= s.published - (i.attempt::bigint << 32) then 1 else 0 end::smallint order by i.i),
         array_agg(i.i::int order by i.i) filter (
           where s.state = 2 and s.token = i.token and s.attempt = i.attempt
             and i.number > coalesce(s.published - (i.attempt::bigint << 32), 0))
    from unnest(p_key, p_token, p_attempt, p_number) with ordinality i(key, token, attempt, number, i)
    left join lateral (
      select state, token, attempt, case when published >> 32 = i.attempt then published end published
        from step where key = i.key offset 0) s on true
    into a_status, v_new;
  if v_new is null then return; end if;
  select array_agg((n.key >> 14, n.key & 16383, 100, 2, 2, n.attempt, null, null, e.text, null)::ev order by e.i)
    from unnest(p_of, p_text) with ordinality e(of, text, i)
    join (select distinct on (i.key, i.number) i.key, i.attempt, i.i    -- one that comes twice at once
            from unnest(p_key, p_attempt, p_number) with ordinality i(key, attempt, number, i)
           where i.i = any(v_new) order by i.key, i.number, i.i) n on n.i = e.of
    into v_ev;
  update step s set published = n.published
    from (select i.key, i.published, (select ctid from step where key = i.key) place
            from (select key, max(attempt::bigint << 32 | number) published
                    from unnest(p_key, p_attempt, p_number) with ordinality i(key, attempt, number, i)
                   where i.i = any(v_new) group by key) i) n
   where s.ctid = n.place;
  perform append(v_ev, null, p_at);
end $$;

-- Publishes events of one task, or of its step p_no, once; without a request, each time.
--
-- Locks   the request, the task, the append.
-- Answers whether it was done before (null: now; false: another request has this id, and nothing was done), the state
--         of the task (null: there is none), and the position of the first event (null: the task has no such step).
create or replace function stepwell.publish_once(
    p_request text, p_hash bytea, p_uid uuid, p_no int, p_text text[], p_at timestamptz default null,
    out r_same bool, out t_was smallint, out r_first bigint)
  language plpgsql volatile set search_path = stepwell as $$
declare
  v_answer  json;
  v_task    bigint;
  v_state   smallint;
  v_attempt int;
begin
  if p_request is not null then
    select * from seen_request(p_request, 5::smallint, p_hash, p_at) into r_same, v_answer;
  end if;
  if r_same then
    t_was   := v_answer -> 'was';
    r_first := v_answer -> 'first';
  elsif r_same is null then
    select id, state from task where uid = p_uid for no key update into v_task, t_was;
    if v_task is null then return; end if;
    if p_no is not null then
      select state, attempt from step where key = v_task << 14 | p_no into v_state, v_attempt;
      if v_state is null then return; end if;
    end if;
    r_first := append(
      (select array_agg((v_task, p_no, case when p_no is null then 101 else 100 end, coalesce(v_state, t_was),
                         coalesce(v_state, t_was), v_attempt, null, null, text, null)::ev order by i)
         from unnest(p_text) with ordinality x(text, i)),
      null, p_at);
    if p_request is not null then
      insert into request values (p_request, 5, coalesce(p_at, clock_timestamp()), p_hash,
                                  json_build_object('was', t_was, 'first', r_first));
    end if;
  end if;
end $$;
