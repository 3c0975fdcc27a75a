/* A small thread pool for tasks of a few hundred microseconds: workers spin briefly before they sleep. */
#ifndef IRSTD_POOL_H
#define IRSTD_POOL_H

typedef struct irstd_pool irstd_pool;

/* threads counts the caller too. NULL when memory or threads run out; fewer workers than asked are accepted. */
irstd_pool *irstd_pool_create(int threads);
void irstd_pool_destroy(irstd_pool *pool);
int irstd_pool_threads(const irstd_pool *pool);

/* Calls task(argument, index) for every index in 0..tasks-1 and returns when all are done. A pool that is busy
 * with another caller's tasks (or NULL) does not share: the caller then runs all of them itself. */
void irstd_pool_run(irstd_pool *pool, int tasks, void (*task)(void *argument, int index), void *argument);

#endif
