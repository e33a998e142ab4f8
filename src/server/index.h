/*-------------------------------------------------------------------------
 * index.h
 *		What indexes are good for who goes straight to them.
 *-------------------------------------------------------------------------
 */
#ifndef INDEX_H
#define INDEX_H

#include "kavach.h"

#include "utils/rel.h"

extern bool index_is_over_heap(Relation table);
extern bool index_has_usual_order(Relation table, Relation index, int column, Oid type);
extern bool index_is_usable(Relation index);

#endif							/* INDEX_H */
