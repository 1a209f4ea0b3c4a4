"""The trial queue between the search and the teams: assignments go one way, metrics the other.

    driver:  events
    search:  put ─▶ next_event ─▶ … ─▶ stop | pause ─▶ resume
    teams:   next_assignment ─▶ rank_0_address (once) ─▶ report_epoch ─▶ … ─▶ finish_trial
             report_failure ─▶ wait_for_team (─▶ report_hang)

`trial_queue` is the queue, a plain asyncio class that a run makes a Ray actor of; `client` is how
everybody else calls it, on Ray or in the same process; `trial_state` says what a trial may do next,
`policy` what becomes of one that failed, `rendezvous` how the members of a team find each other and
part, `events` what can happen, and `event_log` how the driver hears of it.
"""
