-- A page of the log of a task: looks at its events beyond a place, $5 of them at most, and reads those that are asked
-- for, $14 at most, each with the transition before it. Asked for by services/store/src/transition.rs, and explained by
-- tests/verbs/history.rs.
--
-- Ranges and orders are those of the index `event_task` word for word: no other one serves them, so the plan is the same
-- whether the log was empty or long when it was made.
--
-- $1 task  $2 after  $3 before  $4 backwards  $6 what moves nothing, too  $7 of this step  $8 of the task alone
-- $9 to these states  $10 at this attempt  $11 from  $12 until  $13 bytes of texts
with w as materialized (
    (select position, no, type, from_state, to_state, at, attempt, session from stepwell.event
      where (task, position + 0) > ($1, $2) and (task, position + 0) < ($1, $3) and not $4 order by task, position + 0 limit $5)
    union all
    (select position, no, type, from_state, to_state, at, attempt, session from stepwell.event
      where (task, position + 0) > ($1, $2) and (task, position + 0) < ($1, $3) and $4 order by task desc, position + 0 desc limit $5)),
  t as (
    select *, lag(at) over before before_at, lag(session) over before before_session from w
     where from_state is distinct from to_state window before as (partition by no order by position)
    union all
    select *, null, null from w where from_state = to_state and type < 100 and $6),
  m as (
    select *, count(*) over () found,
           row_number() over (order by case when $4 then -position else position end) nth from t
     where ($7::int is null or no = $7 or type = 20) and (no is null or not $8)
       and ($9::smallint[] = '{}' or to_state = any($9)) and ($10::int is null or attempt = $10)
       and ($11::timestamptz is null or at >= $11) and ($12::timestamptz is null or at < $12))
  select s.n as "n!", s.low, s.high, coalesce(m.found, 0) as "found!", m.before_at as "before_at?",
         m.before_session as "before_session?", e.position as "position?", e.batch as "batch?", e.at as "at?",
         e.definition as "definition?", e.no as "no?", e.type as "type?", e.from_state as "from_state?",
         e.to_state as "to_state?", e.attempt as "attempt?", e.session as "session?", e.mark as "mark?",
         case when sum(octet_length(e.text)) over sofar > $13 and m.nth > 1 then null else e.text end as "text?",
         e.names as "names?", sum(octet_length(e.text)) over sofar > $13 as "over?"
    from (select count(*) n, min(position) low, max(position) high from w) s
    left join m on m.nth <= $14
    left join lateral (
      select position, batch, at, definition, no, type, from_state, to_state, attempt, session, mark,
             case when type not in (20, 41) then text end as text, case when type = 23 then names end as names
        from stepwell.event where position = m.position offset 0) e on true
  window sofar as (order by m.nth)
   order by m.nth
