-- A task counts its steps in error, so its end is known without a look at its steps: no step left that
-- is live and none in error = all are complete or resolved. And one CHECK for a step instead of three:
-- each statement that writes steps reads and prepares every one of them.

set local search_path = stepwell;

alter table task add column failed_n int not null default 0 check (failed_n >= 0);
update task t set failed_n = f.n
  from (select key >> 14 task, count(*) n from step where state = 4 group by 1) f
 where t.id = f.task;

alter table step
  drop constraint step_waiting_on_check, drop constraint step_check, drop constraint step_check1,
  add constraint step_lease check (waiting_on >= 0 and (state = 2) = (token is not null)
                                   and (state <> 2 or waiting_on = 0)) not valid;

-- No release has called these in this form.
drop function if exists finish, settle, claim, lock_tasks, create_tasks, create_traced_tasks;

set local search_path to default;
