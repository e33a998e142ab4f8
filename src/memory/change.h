/*-------------------------------------------------------------------------
 * change.h
 *		When what has been looked up is no longer good.
 *-------------------------------------------------------------------------
 */
#ifndef CHANGE_H
#define CHANGE_H

#include "kavach.h"

extern Size change_shmem_size(void);
extern void change_shmem_startup(void);
extern uint64 subject_hash(ScopeKind scope, const char *id);
extern uint64 change_generation(uint64 hash);
extern bool change_under_way(uint64 generation);
extern void change_note(ScopeKind scope, const char *id);
extern void change_note_everything(void);
extern bool change_noted(void);
extern void change_before_commit(void);
extern void change_end_transaction(bool commit);

#endif							/* CHANGE_H */
